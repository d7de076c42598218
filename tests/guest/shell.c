/* Runs a shell for each TCP client of port argv[1]: the tests' hands inside the guest. */
#include <arpa/inet.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    signal(SIGCHLD, SIG_IGN);
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 16))
        return 1;
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client >= 0 && fork() == 0) {
            signal(SIGCHLD, SIG_DFL);
            close(listener);
            dup2(client, 0);
            dup2(client, 1);
            dup2(client, 2);
            close(client);
            execl("/bin/busybox", "sh", (char *)NULL);
            _exit(127);
        }
        close(client);
    }
}
