/* A tiny durable server: each line received is written, synced, to the disk as the next 512-byte
 * record, and only then answered with "ok N LINE". "read N" answers with record N. It keeps the
 * connection open and serves several clients by fork; the next free record number is found at start. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define RECORD 512

static int disk;
static volatile long *next_record;

static void serve(int client)
{
    FILE *in = fdopen(client, "r");
    char line[RECORD];
    char *record = aligned_alloc(RECORD, RECORD);
    while (fgets(line, sizeof line, in)) {
        char answer[RECORD + 64];
        long number;
        line[strcspn(line, "\r\n")] = 0;
        memset(record, 0, RECORD);
        if (sscanf(line, "read %ld", &number) == 1) {
            if (pread(disk, record, RECORD, number * RECORD) != RECORD)
                record[0] = 0;
        } else {
            number = __sync_fetch_and_add(next_record, 1);
            snprintf(record, RECORD, "%s", line);
            if (pwrite(disk, record, RECORD, number * RECORD) != RECORD || fdatasync(disk) != 0)
                return;
        }
        int length = snprintf(answer, sizeof answer, "ok %ld %s\n", number, record);
        if (write(client, answer, length) != length)
            return;
    }
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    disk = open(argv[1], O_RDWR | O_DIRECT | O_DSYNC);
    if (disk < 0)
        return 1;
    next_record = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *record = aligned_alloc(RECORD, RECORD);
    while (pread(disk, record, RECORD, *next_record * RECORD) == RECORD && record[0])
        ++*next_record;
    signal(SIGCHLD, SIG_IGN);
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 16))
        return 1;
    printf("ledger serves from record %ld\n", *next_record);
    fflush(stdout);
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client >= 0 && fork() == 0) {
            close(listener);
            serve(client);
            _exit(0);
        }
        close(client);
    }
}
