/* Counts on several disks in turn, each count synced before the next disk is written. Before every
 * round it reads all of them back: they must hold what was written, also after a failover. The
 * record is at OFFSET of each disk. Prints a line per second: rounds and mismatches so far. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define OFFSET (32L << 20)
#define SIZE 4096

int main(int argc, char **argv)
{
    int disks[8], count = argc - 1;
    long *record = aligned_alloc(SIZE, SIZE), round = 0, wrong = 0;
    time_t said = 0;
    if (count < 1 || count > 8)
        return 2;
    memset(record, 0, SIZE);
    for (int i = 0; i < count; i++)
        if ((disks[i] = open(argv[i + 1], O_RDWR | O_DIRECT | O_DSYNC)) < 0)
            return 1;
    for (;;) {
        for (int i = 0; round && i < count; i++)
            if (pread(disks[i], record, SIZE, OFFSET) != SIZE || record[0] != round)
                wrong++;
        round++;
        for (int i = 0; i < count; i++) {
            record[0] = round;
            if (pwrite(disks[i], record, SIZE, OFFSET) != SIZE)
                wrong++;
        }
        if (time(NULL) != said) {
            said = time(NULL);
            printf("%ld %ld\n", round, wrong);
            fflush(stdout);
        }
    }
}
