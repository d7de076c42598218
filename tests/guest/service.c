/* The quick guest's object service: registers (durable and volatile) and an append-only log.
 *
 * service DISK PORT. One process, one command at a time, so that every object is linearizable by
 * construction: what a history of its clients shows beyond that was done to the machine. Durable
 * objects lie from OFFSET of DISK on and are written with O_DIRECT|O_DSYNC before the answer.
 * Lines, K a register's number (0..63), V a word of at most 47 bytes; "-" is the empty register:
 *
 *   p WORD       "ok WORD"                  b             "ok BOOT", random per start of the guest
 *   r K | R K    "ok V"                     w K V | W K V "ok"
 *   c K A B | C K A B  compare and swap: "ok 1 A" when it was A and is B now, else "ok 0 V"
 *   a V          "ok INDEX" of the appended record        n    "ok LENGTH"
 *   l FROM COUNT "ok V V ..." at most 64 records
 *   x reboot | x poweroff | x panic         no answer
 *
 * Small letters are durable, capitals live in memory alone. What cannot be done: "error WORD". */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <unistd.h>

#define SECTOR 512
#define RECORD 64
#define VALUE 48
#define REGISTERS 64
#define CLIENTS 64
#define OFFSET (32L << 20)
#define LOG_OFFSET (OFFSET + (1L << 20))
#define CHUNK (1L << 20)

static int disk;
static long length;
static char boot[17];
static char durable[REGISTERS][VALUE], memory[REGISTERS][VALUE];
static char *sector; /* the log's last, partly filled sector */
static char *scratch;

struct client {
    int fd;
    size_t used;
    char line[256];
};

static int write_sector(const char *data, long at)
{
    return pwrite(disk, data, SECTOR, at) == SECTOR;
}

static int keep(long key)
{
    memset(scratch, 0, SECTOR);
    memcpy(scratch, durable[key], VALUE);
    return write_sector(scratch, OFFSET + key * SECTOR);
}

static int append(const char *value)
{
    long slot = length % (SECTOR / RECORD);
    if (slot == 0)
        memset(sector, 0, SECTOR);
    snprintf(sector + slot * RECORD, VALUE, "%s", value);
    if (!write_sector(sector, LOG_OFFSET + length / (SECTOR / RECORD) * SECTOR)) {
        memset(sector + slot * RECORD, 0, RECORD);
        return 0;
    }
    ++length;
    return 1;
}

static int load(void)
{
    char *chunk = aligned_alloc(4096, CHUNK);
    for (long key = 0; key < REGISTERS; key++) {
        if (pread(disk, scratch, SECTOR, OFFSET + key * SECTOR) != SECTOR)
            return 0;
        memcpy(durable[key], scratch, VALUE - 1);
    }
    for (long at = LOG_OFFSET;; at += CHUNK) {
        long got = pread(disk, chunk, CHUNK, at);
        for (long offset = 0; offset + RECORD <= got; offset += RECORD) {
            if (chunk[offset] == 0) {
                memcpy(sector, chunk + offset / SECTOR * SECTOR, SECTOR);
                free(chunk);
                return 1;
            }
            ++length;
        }
        if (got < CHUNK)
            return 0;
    }
}

static void end(const char *how)
{
    if (strcmp(how, "reboot") == 0)
        reboot(RB_AUTOBOOT);
    else if (strcmp(how, "poweroff") == 0)
        reboot(RB_POWER_OFF);
    else if (strcmp(how, "panic") == 0) {
        int trigger = open("/proc/sysrq-trigger", O_WRONLY);
        if (trigger < 0 || write(trigger, "c", 1) != 1)
            perror("panic");
    }
}

static int log_range(char *answer, size_t size, long from, long count)
{
    int used = snprintf(answer, size, "ok");
    for (long index = from; index < from + count && index < length && index < from + 64; index++) {
        if (index == from || index % (SECTOR / RECORD) == 0)
            if (pread(disk, scratch, SECTOR, LOG_OFFSET + index / (SECTOR / RECORD) * SECTOR) != SECTOR)
                return snprintf(answer, size, "error read");
        used += snprintf(answer + used, size - used, " %s",
                         scratch + index % (SECTOR / RECORD) * RECORD);
    }
    return used;
}

/* The answer to one line, without its newline; 0 bytes: none. */
static int command(const char *line, char *answer, size_t size)
{
    char word[VALUE], other[VALUE], verb;
    long key, count;
    if (sscanf(line, "p %47s", word) == 1)
        return snprintf(answer, size, "ok %s", word);
    if (strcmp(line, "b") == 0)
        return snprintf(answer, size, "ok %s", boot);
    if (strcmp(line, "n") == 0)
        return snprintf(answer, size, "ok %ld", length);
    if (sscanf(line, "a %47s", word) == 1)
        return append(word) ? snprintf(answer, size, "ok %ld", length - 1)
                            : snprintf(answer, size, "error write");
    if (sscanf(line, "l %ld %ld", &key, &count) == 2 && key >= 0 && count >= 0)
        return log_range(answer, size, key, count);
    if (sscanf(line, "x %47s", word) == 1) {
        end(word);
        return 0;
    }
    int given = sscanf(line, "%c %ld %47s %47s", &verb, &key, word, other);
    if (given < 2 || key < 0 || key >= REGISTERS)
        return snprintf(answer, size, "error command");
    int lasting = verb >= 'a';
    char *value = lasting ? durable[key] : memory[key];
    char before[VALUE];
    memcpy(before, value, VALUE);
    const char *shown = *before ? before : "-";
    switch (lasting ? verb : verb + 'a' - 'A') {
    case 'r':
        return snprintf(answer, size, "ok %s", shown);
    case 'w':
        if (given < 3)
            break;
        snprintf(value, VALUE, "%s", word);
        if (lasting && !keep(key)) {
            memcpy(value, before, VALUE);
            return snprintf(answer, size, "error write");
        }
        return snprintf(answer, size, "ok");
    case 'c':
        if (given < 4)
            break;
        if (strcmp(shown, word) != 0)
            return snprintf(answer, size, "ok 0 %s", shown);
        snprintf(value, VALUE, "%s", other);
        if (lasting && !keep(key)) {
            memcpy(value, before, VALUE);
            return snprintf(answer, size, "error write");
        }
        return snprintf(answer, size, "ok 1 %s", word);
    }
    return snprintf(answer, size, "error command");
}

/* Serve what has arrived; false when the connection is to be closed. */
static int serve(struct client *client)
{
    static char answer[64 * VALUE + 64];
    ssize_t got = recv(client->fd, client->line + client->used,
                       sizeof client->line - 1 - client->used, MSG_DONTWAIT);
    if (got <= 0)
        return got < 0 && errno == EAGAIN;
    client->used += got;
    char *newline;
    while ((newline = memchr(client->line, '\n', client->used))) {
        *newline = 0;
        int size = command(client->line, answer, sizeof answer - 1);
        if (size > 0) {
            answer[size++] = '\n';
            if (send(client->fd, answer, size, MSG_NOSIGNAL) != size)
                return 0;
        }
        client->used -= newline + 1 - client->line;
        memmove(client->line, newline + 1, client->used);
    }
    return client->used < sizeof client->line - 1;
}

static void loop(int listener)
{
    static struct client clients[CLIENTS];
    struct pollfd polled[CLIENTS + 1];
    for (int i = 0; i < CLIENTS; i++)
        clients[i].fd = -1;
    for (;;) {
        for (int i = 0; i < CLIENTS; i++)
            polled[i] = (struct pollfd){.fd = clients[i].fd, .events = POLLIN};
        polled[CLIENTS] = (struct pollfd){.fd = listener, .events = POLLIN};
        if (poll(polled, CLIENTS + 1, -1) < 0)
            continue;
        for (int i = 0; i < CLIENTS; i++)
            if (polled[i].fd >= 0 && polled[i].revents && !serve(&clients[i])) {
                close(clients[i].fd);
                clients[i] = (struct client){.fd = -1};
            }
        if (!polled[CLIENTS].revents)
            continue;
        int fd = accept(listener, NULL, NULL), on = 1, place = 0;
        while (place < CLIENTS && clients[place].fd >= 0)
            place++;
        if (fd < 0)
            continue;
        if (place == CLIENTS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        clients[place].fd = fd;
    }
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    unsigned char noise[8];
    int random = open("/dev/urandom", O_RDONLY), on = 1;
    if (random < 0 || read(random, noise, sizeof noise) != sizeof noise)
        return 1;
    for (unsigned i = 0; i < sizeof noise; i++)
        sprintf(boot + 2 * i, "%02x", noise[i]);
    disk = open(argv[1], O_RDWR | O_DIRECT | O_DSYNC);
    sector = aligned_alloc(4096, 4096);
    scratch = aligned_alloc(4096, 4096);
    if (disk < 0 || !load()) {
        fprintf(stderr, "service: %s cannot be read, or its log is full\n", argv[1]);
        return 1;
    }
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 16))
        return 1;
    printf("service serves a log of %ld records\n", length);
    fflush(stdout);
    loop(listener);
}
