// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// A page of a file on persistent memory (DAX) is the destination of an O_DIRECT read. A hole punched into the file meanwhile has to wait for
// the read, and does. Then the read is done and nothing refers to the page any more: the punch has to return.
//
//     cc -O2 -Wall -Wextra -static -pthread -o h21 h21.c
//     ./h21 DIR SOURCE
//
// DIR is on a file system mounted with dax=always; SOURCE is a file, or a disk, that can be read with O_DIRECT, one page in a second or more:
// a disk that is slow, or throttled (cgroup v2: io.max rbps=2048). The program itself needs no privilege.
// Exit status: 0 shown (the punch still waits 10 s after the read), 1 not shown (it returned), 2 could not run here.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 256, K = 100 };

static int fd, source;
static char *file;
static volatile int punched, result, done;

static void need(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "could not run here: %s: %s\n", what, strerror(errno));
    exit(2);
}

static void *reading(void *unused) {
    need(pread(source, file + K * PAGE, PAGE, 0) == PAGE, "an O_DIRECT read of SOURCE");
    done = 1;
    return unused;
}

static void *punching(void *unused) {
    result = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, K * PAGE, PAGE) ? errno : 0;
    punched = 1;
    return unused;
}

static void nothing(int signal) { (void)signal; }

static void start(pthread_t *thread, void *(*work)(void *)) {
    need((errno = pthread_create(thread, NULL, work, NULL)) == 0, "a thread");
    usleep(300000);
}

int main(int argc, char **argv) {
    static char bytes[PAGES * PAGE];
    pthread_t reader, puncher;
    setvbuf(stdout, NULL, _IOLBF, 0);
    need(argc == 3 && (source = open(argv[2], O_RDONLY | O_DIRECT)) >= 0 && chdir(argv[1]) == 0, "usage: h21 DIR SOURCE");
    memset(bytes, 'A', sizeof bytes);
    fd = open("h21.file", O_RDWR | O_CREAT | O_TRUNC, 0600);
    need(fd >= 0 && write(fd, bytes, sizeof bytes) == (ssize_t)sizeof bytes && fsync(fd) == 0, "h21.file");
    file = mmap(NULL, sizeof bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    need(file != MAP_FAILED, "mmap");
    // It must end a wait, and not have it begun again.
    struct sigaction action = {.sa_handler = nothing};
    need(sigaction(SIGUSR1, &action, NULL) == 0, "sigaction");

    start(&reader, reading);
    start(&puncher, punching);
    errno = 0;
    need(!done && !punched, "a read that lasts until the punch waits for it");
    printf("while the read is under way the punch waits\n");
    need(pthread_join(reader, NULL) == 0, "join");
    for (int waited = 0; waited < 10000 && !punched; waited += 10) usleep(10000);
    int stuck = !punched;
    printf("the read is done, and the punch %s\n", stuck ? "still waits after 10 s" : "has returned");
    if (stuck) pthread_kill(puncher, SIGUSR1);
    need(pthread_join(puncher, NULL) == 0, "join");
    printf("%s: %s\n", stuck ? "after a signal" : "its result", result ? strerror(result) : "the hole is punched");
    return !stuck;
}
