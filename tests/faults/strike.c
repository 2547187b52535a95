/*
 * Counts what a run does to its files, and strikes at the nth such call.
 *
 * Every process of the run shares one control file, so "the nth call of the
 * run" is one number, whoever makes the call: virt-chain itself (which calls
 * strike_arm) or a tool (a wrapper sets LD_PRELOAD and STRIKE_FILE for it).
 * Only calls on files below `root` count.  The layout of the control file is
 * that of strike.py.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum how {
    COUNT,
    KILL_SELF,
    KILL_BOTH,
    KILL_MAIN,
    TEAR_SELF, /* half of a write, then as above */
    TEAR_BOTH,
    FAIL,
    SHORT,   /* half of a write, and that is what the caller is told */
    SIGNAL,  /* `error` is sent to virt-chain */
    PAUSE,   /* until `go` is set */
    CLOCK,   /* the time of day jumps by `clock` seconds */
    TOOL_KILL_BEFORE = 20, /* these count starts of tools */
    TOOL_KILL_AFTER,
    TOOL_FAIL,
    TOOL_HANG,
    TOOL_GONE,
};

enum class { WRITE = 1, SYNC = 2, NAME = 4 };

struct control {
    int64_t at, how, error, forever, classes, clock;
    _Atomic int64_t main, calls, tools, struck, go;
    char root[256], what[256];
};

static struct control *shared;
static int strikes_at_exit;

static int map(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -1;
    void *at = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at == MAP_FAILED)
        return -1;
    shared = at;
    return 0;
}

/* Called by virt-chain's process before it begins. */
int strike_arm(const char *path)
{
    if (map(path))
        return -1;
    shared->main = getpid();
    return 0;
}

static void die(int with_main, int with_self)
{
    if (with_main && shared->main)
        kill((pid_t)shared->main, SIGKILL);
    if (with_self) {
        kill(getpid(), SIGKILL);
        for (;;)
            pause();
    }
}

/* True for one caller only. */
static int first(const char *call, const char *what)
{
    int64_t none = 0;
    if (!atomic_compare_exchange_strong(&shared->struck, &none, getpid()))
        return 0;
    const char *who = getpid() == shared->main ? "virt-chain" : program_invocation_short_name;
    snprintf(shared->what, sizeof shared->what, "%s: %s %s", who, call, what);
    return 1;
}

__attribute__((constructor)) static void prepare(void)
{
    const char *path = getenv("STRIKE_FILE"), *wrapper = getenv("STRIKE_WRAPPER");
    unsetenv("LD_PRELOAD"); /* children are wrapped by their own wrapper, or not at all */
    unsetenv("STRIKE_FILE");
    if (!path || map(path))
        return;
    int64_t number = atomic_fetch_add(&shared->tools, 1) + 1;
    if (shared->how < TOOL_KILL_BEFORE || number < shared->at)
        return;
    if (number > shared->at) {
        if (shared->how == TOOL_FAIL && shared->forever)
            _exit((int)shared->error);
        return;
    }
    if (!first("start", ""))
        return;
    switch (shared->how) {
    case TOOL_KILL_BEFORE:
        die(1, 1);
        break;
    case TOOL_KILL_AFTER:
        strikes_at_exit = 1;
        break;
    case TOOL_FAIL:
        _exit((int)shared->error);
    case TOOL_HANG:
        for (;;)
            pause();
    case TOOL_GONE:
        if (wrapper)
            unlink(wrapper);
        break;
    }
}

__attribute__((destructor)) static void finish(void)
{
    if (strikes_at_exit)
        die(1, 1);
}

/* 0: do the call; -1: do half of it, then call halfway(); else fail with that errno. */
static int step(enum class class, const char *call, const char *what)
{
    int64_t number = atomic_fetch_add(&shared->calls, 1) + 1;
    if (!shared->at || shared->how >= TOOL_KILL_BEFORE || number < shared->at)
        return 0;
    if (!(class & shared->classes))
        return 0;
    if (!first(call, what))
        return shared->forever && shared->how == FAIL ? (int)shared->error : 0;
    switch (shared->how) {
    case KILL_SELF:
        die(0, 1);
        break;
    case KILL_BOTH:
        die(1, 1);
        break;
    case KILL_MAIN:
        die(1, 0);
        break;
    case TEAR_SELF:
    case TEAR_BOTH:
    case SHORT:
        return -1;
    case FAIL:
        return (int)shared->error;
    case SIGNAL:
        kill((pid_t)shared->main, (int)shared->error);
        break;
    case PAUSE:
        while (!shared->go)
            usleep(500);
        break;
    }
    return 0;
}

static void halfway(void)
{
    if (shared->how == TEAR_SELF)
        die(0, 1);
    if (shared->how == TEAR_BOTH)
        die(1, 1);
}

static int ours(const char *path)
{
    return shared && path && !strncmp(path, shared->root, strlen(shared->root));
}

/* The name of the regular file or folder behind fd, where it counts. */
static int ours_fd(int fd, char *path, size_t size)
{
    char link[64];
    if (!shared)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, size - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return ours(path);
}

/* The same of a name in an open folder, as virt-chain has its quarantine. */
static int ours_at(int folder, const char *name)
{
    char path[512];
    return name[0] == '/' || folder == AT_FDCWD ? ours(name) : ours_fd(folder, path, sizeof path);
}

#define REAL(result, name, ...)                              \
    static result (*real)(__VA_ARGS__);                      \
    if (!real)                                               \
        real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/*
 * Half of a write to an image: disks write whole sectors, so it ends where one does.  A write
 * within a sector is never torn.
 */
static size_t sectors_of_half(size_t size, off64_t at)
{
    off64_t middle = (at + (off64_t)size / 2) / 512 * 512;
    return middle > at ? (size_t)(middle - at) : size;
}

/* Half of a write that goes on where the last one ended: a text in a file of its own. */
static size_t half_of(size_t size)
{
    return size > 1 ? size / 2 : size;
}

/* One write of `size` bytes; `part(n)` writes the first n of them. */
#define WRITING(name, fd, size, halved, whole, part)         \
    char path[512];                                          \
    if (!ours_fd(fd, path, sizeof path))                     \
        return whole;                                        \
    int failed = step(WRITE, name, path);                    \
    if (failed > 0) {                                        \
        errno = failed;                                      \
        return -1;                                           \
    }                                                        \
    if (failed < 0) {                                        \
        size_t half = halved;                                \
        ssize_t done = part;                                 \
        halfway();                                           \
        return done;                                         \
    }                                                        \
    return whole;

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(ssize_t, "write", int, const void *, size_t);
    WRITING("write", fd, size, half_of(size), real(fd, data, size), real(fd, data, half))
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    WRITING("pwrite", fd, size, sectors_of_half(size, at), real(fd, data, size, at),
            real(fd, data, half, at))
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    WRITING("pwrite", fd, size, sectors_of_half(size, at), real(fd, data, size, at),
            real(fd, data, half, at))
}

static size_t length_of(const struct iovec *pieces, int count)
{
    size_t sum = 0;
    for (int i = 0; i < count; i++)
        sum += pieces[i].iov_len;
    return sum;
}

/* The first `half` bytes of the pieces, in one write. */
static ssize_t front(int fd, const struct iovec *pieces, int count, size_t half, off64_t at)
{
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    if (!real)
        real = (ssize_t(*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    char *buffer = malloc(half ? half : 1);
    size_t filled = 0;
    for (int i = 0; i < count && filled < half; i++) {
        size_t take = pieces[i].iov_len < half - filled ? pieces[i].iov_len : half - filled;
        memcpy(buffer + filled, pieces[i].iov_base, take);
        filled += take;
    }
    ssize_t done = real(fd, buffer, half, at);
    free(buffer);
    return done;
}

ssize_t pwritev(int fd, const struct iovec *pieces, int count, off_t at)
{
    REAL(ssize_t, "pwritev", int, const struct iovec *, int, off_t);
    size_t size = length_of(pieces, count);
    WRITING("pwritev", fd, size, sectors_of_half(size, at), real(fd, pieces, count, at),
            front(fd, pieces, count, half, at))
}

ssize_t pwritev64(int fd, const struct iovec *pieces, int count, off64_t at)
{
    REAL(ssize_t, "pwritev64", int, const struct iovec *, int, off64_t);
    size_t size = length_of(pieces, count);
    WRITING("pwritev", fd, size, sectors_of_half(size, at), real(fd, pieces, count, at),
            front(fd, pieces, count, half, at))
}

/* A call that is done whole or not at all. */
#define WHOLE(class, name, counts, what, call)               \
    if (!(counts))                                           \
        return call;                                         \
    int failed = step(class, name, what);                    \
    if (failed > 0) {                                        \
        errno = failed;                                      \
        return -1;                                           \
    }                                                        \
    if (failed < 0)                                          \
        halfway();                                           \
    return call;

#define ON_FD(class, name, parameters, arguments, ...)       \
    int name parameters                                      \
    {                                                        \
        char path[512];                                      \
        REAL(int, #name, __VA_ARGS__);                       \
        WHOLE(class, #name, ours_fd(fd, path, sizeof path), path, real arguments) \
    }

ON_FD(SYNC, fsync, (int fd), (fd), int)
ON_FD(SYNC, fdatasync, (int fd), (fd), int)
ON_FD(WRITE, ftruncate, (int fd, off_t size), (fd, size), int, off_t)
ON_FD(WRITE, ftruncate64, (int fd, off64_t size), (fd, size), int, off64_t)
ON_FD(WRITE, fallocate, (int fd, int mode, off_t at, off_t size), (fd, mode, at, size), int, int,
      off_t, off_t)
ON_FD(WRITE, fallocate64, (int fd, int mode, off64_t at, off64_t size), (fd, mode, at, size), int,
      int, off64_t, off64_t)
ON_FD(NAME, fchmod, (int fd, mode_t mode), (fd, mode), int, mode_t)
ON_FD(NAME, fchown, (int fd, uid_t user, gid_t group), (fd, user, group), int, uid_t, gid_t)

#define ON_NAME(class, name, counts, path, parameters, arguments, ...) \
    int name parameters                                      \
    {                                                        \
        REAL(int, #name, __VA_ARGS__);                       \
        WHOLE(class, #name, counts, path, real arguments)    \
    }
#define ON_PATH(class, name, path, ...) ON_NAME(class, name, ours(path), path, __VA_ARGS__)
#define ON_PATH_AT(class, name, folder, path, ...) \
    ON_NAME(class, name, ours_at(folder, path), path, __VA_ARGS__)

ON_PATH(NAME, rename, to, (const char *from, const char *to), (from, to), const char *,
        const char *)
ON_PATH_AT(NAME, renameat, other, to, (int one, const char *from, int other, const char *to),
        (one, from, other, to), int, const char *, int, const char *)
ON_PATH_AT(NAME, renameat2, other, to,
        (int one, const char *from, int other, const char *to, unsigned int flags),
        (one, from, other, to, flags), int, const char *, int, const char *, unsigned int)
ON_PATH(NAME, link, to, (const char *from, const char *to), (from, to), const char *, const char *)
ON_PATH_AT(NAME, linkat, other, to, (int one, const char *from, int other, const char *to, int flags),
        (one, from, other, to, flags), int, const char *, int, const char *, int)
ON_PATH(NAME, unlink, path, (const char *path), (path), const char *)
ON_PATH_AT(NAME, unlinkat, folder, path, (int folder, const char *path, int flags),
           (folder, path, flags), int, const char *, int)
ON_PATH(NAME, chmod, path, (const char *path, mode_t mode), (path, mode), const char *, mode_t)
ON_PATH(NAME, chown, path, (const char *path, uid_t user, gid_t group), (path, user, group),
        const char *, uid_t, gid_t)

static int64_t jump(void)
{
    return shared && shared->struck && shared->how == CLOCK ? shared->clock : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    int result = real(clock, now);
    if (!result && clock == CLOCK_REALTIME)
        now->tv_sec += jump();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    REAL(int, "gettimeofday", struct timeval *restrict, void *restrict);
    int result = real(now, zone);
    if (!result)
        now->tv_sec += jump();
    return result;
}
