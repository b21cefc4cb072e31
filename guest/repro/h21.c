// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// A page of a file on persistent memory (DAX) is in a pipe, by vmsplice. A hole punched into the file has to wait until the pipe has let go of
// it, and does. Then the pipe is read, and nothing refers to the page any more: the punch has to return.
//
//     cc -O2 -Wall -Wextra -static -pthread -o h21 h21.c
//     ./h21 DIR
//
// DIR is on a file system mounted with dax=always; no privilege is needed.
// Exit status: 0 shown (the punch still waits 10 s after the page was let go), 1 not shown (it returned), 2 could not run here.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 256, K = 100 };

static int fd;
static volatile int returned, result;

static void need(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "could not run here: %s: %s\n", what, strerror(errno));
    exit(2);
}

static void *punch(void *unused) {
    result = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, K * PAGE, PAGE) ? errno : 0;
    returned = 1;
    return unused;
}

static void nothing(int signal) { (void)signal; }

// Whether the punch returns within so many milliseconds.
static int within(int ms) {
    for (int waited = 0; waited < ms && !returned; waited += 10) usleep(10000);
    return returned;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    need(argc == 2 && chdir(argv[1]) == 0, "usage: h21 DIR");
    static char bytes[PAGES * PAGE];
    memset(bytes, 'A', sizeof bytes);
    fd = open("h21.file", O_RDWR | O_CREAT | O_TRUNC, 0600);
    need(fd >= 0 && write(fd, bytes, sizeof bytes) == (ssize_t)sizeof bytes && fsync(fd) == 0, "h21.file");
    char *file = mmap(NULL, sizeof bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    need(file != MAP_FAILED, "mmap");
    struct sigaction action = {.sa_handler = nothing};
    need(sigaction(SIGUSR1, &action, NULL) == 0, "sigaction");

    int ends[2];
    struct iovec page = {file + K * PAGE, PAGE};
    file[K * PAGE] = 'B';
    need(pipe(ends) == 0 && vmsplice(ends[1], &page, 1, 0) == PAGE, "vmsplice");
    pthread_t thread;
    need(pthread_create(&thread, NULL, punch, NULL) == 0, "a thread");
    int early = within(2000);
    printf("with the page in a pipe: the punch %s\n", early ? "returned" : "waits");
    need(read(ends[0], bytes, PAGE) == PAGE, "reading the pipe");
    int late = within(10000);
    printf("with the pipe read: the punch %s\n", late ? "returned" : "still waits after 10 s");
    if (!late) pthread_kill(thread, SIGUSR1);
    need(pthread_join(thread, NULL) == 0, "join");
    printf("the punch's result: %s\n", result ? strerror(result) : "done");
    return late;
}
