/*
 * Kills the process it is preloaded into with SIGKILL, just before its nth step.
 *
 * A step is what another process or the next start can see: a command to
 * QEMU's monitor (queries do not count), a rename or a hard link.  So with
 * n = 1, 2, ... a test stops a program at each point that matters.
 *
 *   KILL_AT=3       SIGKILL before step 3; 0: only count
 *   KILL_LOG=PATH   one line for each step, written before the step
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int kill_at, log_fd = -1;
static atomic_int steps;

__attribute__((constructor)) static void prepare(void)
{
    const char *at = getenv("KILL_AT"), *path = getenv("KILL_LOG");
    kill_at = at ? atoi(at) : 0;
    if (path)
        log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    unsetenv("LD_PRELOAD"); /* the children run as they are */
}

static void step(const char *kind, const char *what)
{
    if (log_fd < 0)
        return;
    int number = atomic_fetch_add(&steps, 1) + 1;
    dprintf(log_fd, "%s %s\n", kind, what);
    if (number == kill_at) {
        kill(getpid(), SIGKILL);
        pause();
    }
}

static int is_query(const char *name)
{
    return !strncmp(name, "query-", 6) || !strncmp(name, "qom-", 4) ||
           !strcmp(name, "qmp_capabilities") || !strcmp(name, "device-list-properties");
}

ssize_t write(int fd, const void *data, size_t size)
{
    static ssize_t (*real)(int, const void *, size_t);
    if (!real)
        real = dlsym(RTLD_NEXT, "write");
    static const char start[] = "{\"execute\":\"";
    struct stat status;
    if (size > sizeof start && !memcmp(data, start, sizeof start - 1) &&
        !fstat(fd, &status) && S_ISSOCK(status.st_mode)) {
        char name[64] = "";
        sscanf((const char *)data + sizeof start - 1, "%63[^\"]", name);
        if (!is_query(name))
            step("qmp", name);
    }
    return real(fd, data, size);
}

int rename(const char *from, const char *to)
{
    step("rename", to);
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    return real(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to)
{
    step("rename", to);
    int (*real)(int, const char *, int, const char *) = dlsym(RTLD_NEXT, "renameat");
    return real(from_folder, from, to_folder, to);
}

int link(const char *from, const char *to)
{
    step("link", to);
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "link");
    return real(from, to);
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags)
{
    step("link", to);
    int (*real)(int, const char *, int, const char *, int) = dlsym(RTLD_NEXT, "linkat");
    return real(from_folder, from, to_folder, to, flags);
}
