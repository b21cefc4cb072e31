// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// A page of a shared file mapping on btrfs is pinned by process_vm_writev, which copies to it piece by piece. Meanwhile fsync writes the
// page. A piece that lands between the checksum and the transfer leaves a block on disk that its own checksum refuses: an O_DIRECT read
// says EIO. The next writeback puts the file right; a clone (or a snapshot) made meanwhile keeps the block for good.
//
//     cc -O2 -Wall -Wextra -static -pthread -o h12 h12.c
//     ./h12 DIR [ROUNDS]
//
// DIR is on btrfs with checksums; no privilege is needed. What keeps the call going is that each piece comes from another page of a file
// that is not in memory, so that it is a page fault. mincore(2) says how far the call is. Whether a piece lands at the right moment is
// luck.
// Exit status: 0 shown, 1 not shown in ROUNDS rounds, 2 could not run here.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 256, K = 100, VM_COLD = 256 };

static char *file, *cold; // mappings: the file under test, shared; a file that is not in memory
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
    for (int n = 0; n < VM_COLD; n++) parts[n] = (struct iovec){cold + n * PAGE, PAGE / VM_COLD};
    struct iovec whole = {file + K * PAGE, PAGE};
    returned = process_vm_writev(getpid(), parts, VM_COLD, &whole, 1, 0);
    if (returned < 0) returned = -errno;
    return unused;
}

static int in_memory(int page) {
    unsigned char flag;
    need(mincore(cold + (size_t)page * PAGE, PAGE, &flag) == 0, "mincore");
    return flag & 1;
}

// What an O_DIRECT read of page K says: its last byte, or the error.
static const char *direct(int fd) {
    static char *buffer, text[4][2];
    static int at;
    if (!buffer) need(posix_memalign((void **)&buffer, PAGE, PAGE) == 0, "memory");
    if (pread(fd, buffer, PAGE, K * PAGE) < 0) return strerror(errno);
    char *answer = text[at++ % 4];
    answer[0] = buffer[PAGE - 1];
    return answer;
}

static int shown(int round) {
    int fd = make("h12.file", PAGES, 'A'), cold_fd = make("h12.cold", VM_COLD, 'C');
    int direct_fd = open("h12.file", O_RDWR | O_DIRECT);
    need(direct_fd >= 0, "O_DIRECT");
    need(posix_fadvise(cold_fd, 0, 0, POSIX_FADV_DONTNEED) == 0, "posix_fadvise");
    file = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    cold = mmap(NULL, VM_COLD * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, cold_fd, 0);
    need(file != MAP_FAILED && cold != MAP_FAILED && madvise(cold, VM_COLD * PAGE, MADV_RANDOM) == 0, "mmap");
    need(!in_memory(0), "a file whose pages can be evicted");

    memset(file + K * PAGE, 'B', PAGE);
    returned = 0;
    pthread_t thread;
    need(pthread_create(&thread, NULL, pinning_call, NULL) == 0, "a thread");
    while (!in_memory(0) && *(volatile ssize_t *)&returned == 0) usleep(50);
    need(fsync(fd) == 0, "fsync");
    int clone_fd = open("h12.clone", O_RDWR | O_CREAT | O_TRUNC | O_DIRECT, 0600);
    const char *meanwhile = direct(direct_fd);
    need(clone_fd >= 0 && ioctl(clone_fd, FICLONE, fd) == 0 && fsync(clone_fd) == 0, "a clone");
    need(pthread_join(thread, NULL) == 0, "join");
    need(returned > 0, "process_vm_writev");
    fsync(fd), sleep(1), fsync(fd);
    const char *original = direct(direct_fd), *clone = direct(clone_fd);
    int torn = strlen(meanwhile) > 1 || strlen(clone) > 1;
    printf("round %d: page %d of the file read while the call ran: %s; of the file, later: %s; of its clone: %s; %s\n", round, K, meanwhile, original,
           clone, torn ? "data and checksum disagree" : "as it should be");
    munmap(file, PAGES * PAGE);
    munmap(cold, VM_COLD * PAGE);
    close(fd), close(cold_fd), close(direct_fd), close(clone_fd);
    return torn;
}

int main(int argc, char **argv) {
    int rounds = argc > 2 ? atoi(argv[2]) : 20;
    setvbuf(stdout, NULL, _IOLBF, 0);
    need(argc > 1 && rounds > 0 && chdir(argv[1]) == 0, "usage: h12 DIR [ROUNDS]");
    for (int round = 1; round <= rounds; round++)
        if (shown(round)) return 0;
    printf("not shown in %d rounds\n", rounds);
    return 1;
}
