// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// A page of a shared file mapping is pinned as the destination of an O_DIRECT read (or of process_vm_writev). Meanwhile madvise(2) advises
// the kernel to reclaim the file, or only the page's neighbour. The read returns success. Does a later fsync write what it brought? On
// btrfs the thread that reads may die in the kernel: "KERNEL OOPS" below, and dmesg has the rest. Try that on a machine that may be lost.
//
//     cc -O2 -Wall -Wextra -static -pthread -o h03 h03.c
//     ./h03 DIR [read|vm] [pageout|cold] [file|next] [ROUNDS] [SOURCE]
//
// DIR is on the file system to try; no privilege is needed. What holds the pin open is the rest of the same call: it goes on to pages of a
// file that is not in memory, and each of them is a page fault. mincore(2) says how far the call is: when the first of them is in memory
// the pin is there, and as long as the last is not, it still is. But a direct read of a file on btrfs lets go of what it has before it
// takes a page fault: there use vm, or name a folder on another file system as SOURCE (an absolute path) for the file that is read.
// Exit status: 0 shown, 1 not shown in ROUNDS rounds, 2 could not run here.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 256, K = 100, VM_COLD = 256, READ_COLD = 128 };
enum { LAST = K * PAGE + PAGE - 1 }; // the byte of page K that process_vm_writev copies last

static char *file, *cold; // mappings: the file under test, shared; a file that is not in memory
static int source;        // O_DIRECT, full of C
static int by_read = 1, cold_pages = READ_COLD;
static ssize_t returned;

static void need(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "could not run here: %s: %s\n", what, strerror(errno));
    exit(2);
}

// A file of this many pages full of `letter`, written at once, on disk.
static int make(const char *name, int pages, char letter) {
    size_t size = (size_t)pages * PAGE;
    char *bytes = malloc(size);
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    need(bytes && fd >= 0, name);
    memset(bytes, letter, size);
    need(write(fd, bytes, size) == (ssize_t)size && fsync(fd) == 0, name);
    free(bytes);
    return fd;
}

// The call that pins page K for as long as its faults take.
static void *pinning_call(void *unused) {
    static struct iovec parts[VM_COLD];
    int n = 0;
    if (by_read) {
        parts[n++] = (struct iovec){file + K * PAGE, PAGE};
        parts[n++] = (struct iovec){cold, (size_t)cold_pages * PAGE};
        returned = preadv(source, parts, n, 0);
    } else {
        struct iovec whole = {file + K * PAGE, PAGE};
        for (; n < VM_COLD; n++) parts[n] = (struct iovec){cold + n * PAGE, PAGE / VM_COLD};
        returned = process_vm_writev(getpid(), parts, n, &whole, 1, 0);
    }
    if (returned < 0) returned = -errno;
    return unused;
}

static int in_memory(int page) {
    unsigned char flag;
    need(mincore(cold + (size_t)page * PAGE, PAGE, &flag) == 0, "mincore");
    return flag & 1;
}

// The last byte of a page as an O_DIRECT read has it, or '!' where btrfs cannot read it: the copy and fsync have raced, and data and checksum
// disagree (h12.c). That is a finding of its own, and not this program's.
static char direct(int fd, int page) {
    static char *buffer;
    if (!buffer) need(posix_memalign((void **)&buffer, PAGE, PAGE) == 0, "memory");
    ssize_t got = pread(fd, buffer, PAGE, (off_t)page * PAGE);
    need(got == PAGE || (got < 0 && errno == EIO), "an O_DIRECT read of the file");
    return got == PAGE ? buffer[PAGE - 1] : '!';
}

// MADV_PAGEOUT passes over pages that still wait in a CPU's list of new ones, and empties its own CPU's list only.
static void one_cpu(void) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    need(sched_setaffinity(0, sizeof one, &one) == 0, "sched_setaffinity");
}

// A fault maps all of a large folio where one page table covers it. The advice must meet a folio of which it covers, or of which is mapped, only a
// part, or it does not try to split it. So the file lies across the border of two tables, and its pages are mapped one by one.
static char *map_across(int fd) {
    uintptr_t table = 512 * PAGE;
    char *room = mmap(NULL, 3 * table, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(room != MAP_FAILED, "mmap");
    uintptr_t border = ((uintptr_t)room + 2 * table) / table * table;
    // Page K is below the border, and so is its neighbour.
    return mmap((char *)border - PAGES / 2 * PAGE, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
}

// What the mapping shows at LAST, by read(2), which shares its pages: '!' where the page has left memory and cannot be read again (h12.c); a load
// would be a SIGBUS.
static char in_mapping(int fd) {
    char byte;
    return pread(fd, &byte, 1, LAST) == 1 ? byte : '!';
}

static int shown(int round, int advice, int next_only) {
    int fd = make("h03.file", PAGES, 'A'), cold_fd = make("h03.cold", VM_COLD, 'C');
    int direct_fd = open("h03.file", O_RDWR | O_DIRECT);
    need(direct_fd >= 0, "O_DIRECT");
    need(posix_fadvise(cold_fd, 0, 0, POSIX_FADV_DONTNEED) == 0, "posix_fadvise");
    file = map_across(fd);
    cold = mmap(NULL, VM_COLD * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, cold_fd, 0);
    need(file != MAP_FAILED && cold != MAP_FAILED && madvise(cold, VM_COLD * PAGE, MADV_RANDOM) == 0, "mmap");
    need(!in_memory(0), "a file whose pages can be evicted");

    memset(file + K * PAGE, 'B', PAGE);
    memset(file + (K + 1) * PAGE, 'D', PAGE);
    returned = 0;
    pthread_t thread;
    need(pthread_create(&thread, NULL, pinning_call, NULL) == 0, "a thread");
    while (!in_memory(0) && *(volatile ssize_t *)&returned == 0) usleep(50);
    need(fsync(fd) == 0, "fsync");
    char *from = next_only ? file + (K + 1) * PAGE : file;
    need(madvise(from, next_only ? PAGE : PAGES * PAGE, advice) == 0, "madvise");
    int inside = !in_memory(cold_pages - 1);
    struct timespec limit;
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += 60;
    int joined = pthread_timedjoin_np(thread, NULL, &limit);
    if (joined != 0 || returned == 0) {
        printf("round %d: KERNEL OOPS: the thread that reads %s; see dmesg\n", round, joined ? "does not come back" : "died in the kernel");
        _exit(0);
    }
    need(returned > 0, by_read ? "preadv" : "process_vm_writev");

    char memory = in_mapping(fd);
    int synced = fsync(fd);
    char disk = direct(direct_fd, K);
    int again = fsync(fd);
    char later = direct(direct_fd, K);
    int readable = memory != '!' && disk != '!';
    int lost = readable && synced == 0 && disk != memory;
    printf("round %d: the %s returned %zd%s; page %d in the mapping has %c, fsync returned %d and O_DIRECT reads %c, again %d and %c: %s\n", round,
           by_read ? "direct read" : "process_vm_writev", returned, inside ? "" : " (before the advice was done)", K, memory, synced, disk, again,
           later, lost       ? "fsync has not written what memory shows"
           : readable ? "as it should be"
                      : "it cannot be read back");
    munmap(file, PAGES * PAGE);
    munmap(cold, VM_COLD * PAGE);
    close(fd), close(cold_fd), close(direct_fd);
    return lost;
}

int main(int argc, char **argv) {
    int advice = MADV_PAGEOUT, next_only = 0, rounds = 3;
    setvbuf(stdout, NULL, _IOLBF, 0);
    int dir = argc > 1 ? open(argv[1], O_RDONLY | O_DIRECTORY) : -1;
    need(dir >= 0, "usage: h03 DIR [read|vm] [pageout|cold] [file|next] [ROUNDS] [SOURCE]");
    need(fchdir(dir) == 0, argv[1]);
    for (int i = 2; i < argc; i++) {
        if (argv[i][0] == '/') need(chdir(argv[i]) == 0, argv[i]);
        else if (!strcmp(argv[i], "vm")) by_read = 0, cold_pages = VM_COLD;
        else if (!strcmp(argv[i], "cold")) advice = MADV_COLD;
        else if (!strcmp(argv[i], "next")) next_only = 1;
        else if (atoi(argv[i]) > 0) rounds = atoi(argv[i]);
    }
    one_cpu();
    close(make("h03.source", 1 + READ_COLD, 'C'));
    source = open("h03.source", O_RDONLY | O_DIRECT);
    need(source >= 0 && fchdir(dir) == 0, "O_DIRECT");
    for (int round = 1; round <= rounds; round++)
        if (shown(round, advice, next_only)) return 0;
    printf("not shown in %d rounds\n", rounds);
    return 1;
}
