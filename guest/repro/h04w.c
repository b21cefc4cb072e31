// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// A page of a shared file mapping is pinned as the destination of an O_DIRECT read (or of process_vm_writev). Meanwhile its neighbour in
// the same large folio is written by O_DIRECT, or punched out. The read returns success. Are its bytes in the mapping?
//
//     cc -O2 -Wall -Wextra -static -pthread -o h04w h04w.c
//     ./h04w DIR [read|vm] [write|punch] [ROUNDS] [SOURCE]
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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
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

// What the mapping shows at LAST, by read(2), which shares its pages: '!' where the page has left memory and cannot be read again (h12.c); a load
// would be a SIGBUS.
static char in_mapping(int fd) {
    char byte;
    return pread(fd, &byte, 1, LAST) == 1 ? byte : '!';
}

static int shown(int round, int punch) {
    int fd = make("h04w.file", PAGES, 'A'), cold_fd = make("h04w.cold", VM_COLD, 'C');
    int direct_fd = open("h04w.file", O_RDWR | O_DIRECT);
    need(direct_fd >= 0, "O_DIRECT");
    need(posix_fadvise(cold_fd, 0, 0, POSIX_FADV_DONTNEED) == 0, "posix_fadvise");
    file = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    cold = mmap(NULL, VM_COLD * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, cold_fd, 0);
    need(file != MAP_FAILED && cold != MAP_FAILED && madvise(cold, VM_COLD * PAGE, MADV_RANDOM) == 0, "mmap");
    need(!in_memory(0), "a file whose pages can be evicted");

    memset(file + K * PAGE, 'B', PAGE);
    memset(file + (K + 1) * PAGE, 'D', PAGE);
    char *e;
    need(posix_memalign((void **)&e, PAGE, PAGE) == 0, "memory");
    memset(e, 'E', PAGE);
    returned = 0;
    pthread_t thread;
    need(pthread_create(&thread, NULL, pinning_call, NULL) == 0, "a thread");
    while (!in_memory(0) && *(volatile ssize_t *)&returned == 0) usleep(50);
    need(fsync(fd) == 0, "fsync");
    int done = punch ? fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (K + 1) * PAGE, PAGE)
                     : pwrite(direct_fd, e, PAGE, (K + 1) * PAGE) - PAGE;
    need(done == 0, "the neighbour");
    int inside = !in_memory(cold_pages - 1);
    need(pthread_join(thread, NULL) == 0, "join");
    need(returned > 0, by_read ? "preadv" : "process_vm_writev");

    char memory = in_mapping(fd);
    int synced = fsync(fd);
    char disk = direct(direct_fd, K), next = direct(direct_fd, K + 1);
    int readable = memory != '!' && disk != '!', lost = readable && (memory != 'C' || disk != 'C');
    printf("round %d: the %s returned %zd%s; page %d in the mapping has %c, fsync returned %d, O_DIRECT reads %c there and %c in page %d: %s\n",
           round, by_read ? "direct read" : "process_vm_writev", returned, inside ? "" : " (before its neighbour was done with)", K, memory, synced, disk,
           next ? next : '0', K + 1, lost       ? "the bytes that were read are gone"
           : readable ? "as it should be"
                      : "it cannot be read back");
    munmap(file, PAGES * PAGE);
    munmap(cold, VM_COLD * PAGE);
    close(fd), close(cold_fd), close(direct_fd), free(e);
    return lost;
}

int main(int argc, char **argv) {
    int punch = 0, rounds = 3;
    setvbuf(stdout, NULL, _IOLBF, 0);
    int dir = argc > 1 ? open(argv[1], O_RDONLY | O_DIRECTORY) : -1;
    need(dir >= 0, "usage: h04w DIR [read|vm] [write|punch] [ROUNDS] [SOURCE]");
    need(fchdir(dir) == 0, argv[1]);
    for (int i = 2; i < argc; i++) {
        if (argv[i][0] == '/') need(chdir(argv[i]) == 0, argv[i]);
        else if (!strcmp(argv[i], "vm")) by_read = 0, cold_pages = VM_COLD;
        else if (!strcmp(argv[i], "punch")) punch = 1;
        else if (atoi(argv[i]) > 0) rounds = atoi(argv[i]);
    }
    close(make("h04w.source", 1 + READ_COLD, 'C'));
    source = open("h04w.source", O_RDONLY | O_DIRECT);
    need(source >= 0 && fchdir(dir) == 0, "O_DIRECT");
    for (int round = 1; round <= rounds; round++)
        if (shown(round, punch)) return 0;
    printf("not shown in %d rounds\n", rounds);
    return 1;
}
