/*
 * The only program of a test guest: writes numbered records and says which are durable.
 *
 * Each virtio disk is a ring of 4 KiB slots.  Record n (from 1) goes to slot
 * permuted((n - 1) mod slots), so what every slot has to hold follows from the
 * highest number.  tests/guests/records.py reads the same ring on the host.
 *
 * Kernel command line:
 *   witness.region=16M     the ring's size, rounded down to a power of two and to the disk
 *   witness.pause_ms=10    pause after each record
 *   witness.mode=write     or read: verify one record after the other
 *   witness.wait=0         1: do not open the disks before a line comes on the console
 *
 * Lines on the serial console (us: microseconds of the write and its fdatasync):
 *   C                      booted, and waits for a line (witness.wait=1)
 *   B vda ok 17            at boot: all records up to 17 are there; numbers go on at 18
 *   B vda bad 3 want=17 got=1 count=2    slot 3 is wrong, 2 slots are; the disk stays as it is
 *   W vda 18 913us         record 18 is durable
 *   V vda 18 90us          record 18 reads right (mode read)
 *   E vda 19 5             record 19 failed with this errno; it is tried again
 *   R vda ok 18            the answer to "read"; R vda bad ... as at boot
 *   H, G                   the answers to "hold" and "go"
 *   P                      the power button was pressed
 *   S                      the last line before power off ("stop" or the button)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/input.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { SLOT = 4096, CHUNK = 256, DISKS = 8, BUTTONS = 4 };

struct record {
    char magic[8];
    uint64_t number, slot, slots;
    char disk[8];
    uint64_t payload[(SLOT - 48) / 8];
    uint32_t zero, crc; /* zlib's crc32 of all bytes before it */
};
_Static_assert(sizeof(struct record) == SLOT, "a record fills a slot");

struct disk {
    char name[8];
    int fd;
    uint64_t slots, durable;
    int healthy, reading;
    struct record *buffer, *chunk;
    int64_t *found; /* number in each slot; 0: empty, -1: damaged */
    pthread_mutex_t lock;
};

static struct disk disks[DISKS];
static int disk_count, console = -1, read_only, wait_first;
static volatile int held;
static uint64_t region = 16 << 20;
static long pause_ms = 10;
static uint32_t crc_table[256];

static void say(const char *format, ...)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    char line[160];
    va_list list;
    va_start(list, format);
    int length = vsnprintf(line, sizeof line, format, list);
    va_end(list);
    pthread_mutex_lock(&lock);
    for (int done = 0; done < length;) {
        ssize_t now = write(console, line + done, length - done);
        if (now > 0)
            done += now;
    }
    pthread_mutex_unlock(&lock);
}

static uint32_t crc32(const void *data, size_t length)
{
    uint32_t crc = ~0u;
    for (const uint8_t *byte = data; length--; byte++)
        crc = crc_table[(crc ^ *byte) & 255] ^ (crc >> 8);
    return ~crc;
}

static uint64_t permuted(uint64_t index, uint64_t slots)
{
    uint64_t mask = slots - 1;
    int shift = __builtin_ctzll(slots) / 2 + 1;
    index = (index * 0x9E3779B1u) & mask;
    index ^= index >> shift;
    index = (index * 0x85EBCA6Bu) & mask;
    return index ^ (index >> shift);
}

static uint64_t slot_of(const struct disk *disk, uint64_t number)
{
    return permuted((number - 1) & (disk->slots - 1), disk->slots);
}

static uint64_t microseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000ull + now.tv_nsec / 1000;
}

static void fill(struct record *record, const struct disk *disk, uint64_t number)
{
    memset(record, 0, sizeof *record);
    memcpy(record->magic, "WITNESS1", 8);
    record->number = number;
    record->slot = slot_of(disk, number);
    record->slots = disk->slots;
    strcpy(record->disk, disk->name);
    for (unsigned i = 0; i < sizeof record->payload / 8; i++)
        record->payload[i] = number * 0x9E3779B97F4A7C15ull + i * 0xD6E8FEB86659FD93ull;
    record->crc = crc32(record, SLOT - 4);
}

static int64_t number_in(const struct record *record, const struct disk *disk, uint64_t slot)
{
    static const struct record empty;
    if (!memcmp(record, &empty, SLOT))
        return 0;
    int good = !memcmp(record->magic, "WITNESS1", 8) && record->slot == slot &&
               record->slots == disk->slots && !strcmp(record->disk, disk->name) &&
               record->crc == crc32(record, SLOT - 4) && record->number &&
               slot_of(disk, record->number) == slot;
    return good ? (int64_t)record->number : -1;
}

/* Fills disk->found; returns the highest number, or -errno. */
static int64_t scan(struct disk *disk)
{
    int64_t highest = 0;
    for (uint64_t slot = 0; slot < disk->slots; slot += CHUNK) {
        uint64_t now = disk->slots - slot < CHUNK ? disk->slots - slot : CHUNK;
        if (pread(disk->fd, disk->chunk, now * SLOT, slot * SLOT) != (ssize_t)(now * SLOT))
            return -(errno ? errno : EIO);
        for (uint64_t i = 0; i < now; i++) {
            disk->found[slot + i] = number_in(&disk->chunk[i], disk, slot + i);
            if (disk->found[slot + i] > highest)
                highest = disk->found[slot + i];
        }
    }
    return highest;
}

/* Reads every slot and says a B or R line; returns whether all is well. */
static int verify(struct disk *disk, char kind)
{
    int64_t highest = scan(disk);
    if (highest < 0) {
        say("E %s 0 %lld\n%c %s bad 0 want=0 got=0 count=0\n", disk->name, (long long)-highest,
            kind, disk->name);
        return 0;
    }
    if (kind == 'B')
        disk->durable = highest;
    uint64_t last = disk->durable, bad = 0, first = 0, want_first = 0;
    uint64_t *want = calloc(disk->slots, sizeof *want);
    for (uint64_t n = last > disk->slots ? last - disk->slots + 1 : 1; n <= last; n++)
        want[slot_of(disk, n)] = n;
    for (uint64_t slot = 0; slot < disk->slots; slot++) {
        int64_t got = disk->found[slot];
        /* A record whose write failed may be there all the same. */
        int tried = got == (int64_t)last + 1 && slot_of(disk, last + 1) == slot;
        if (got == (int64_t)want[slot] || tried)
            continue;
        if (!bad++) {
            first = slot;
            want_first = want[slot];
        }
    }
    free(want);
    if (bad)
        say("%c %s bad %llu want=%llu got=%lld count=%llu\n", kind, disk->name,
            (unsigned long long)first, (unsigned long long)want_first,
            (long long)disk->found[first], (unsigned long long)bad);
    else
        say("%c %s ok %llu\n", kind, disk->name, (unsigned long long)last);
    return !bad;
}

static int write_next(struct disk *disk)
{
    uint64_t number = disk->durable + 1;
    fill(disk->buffer, disk, number);
    uint64_t start = microseconds();
    errno = 0;
    if (pwrite(disk->fd, disk->buffer, SLOT, disk->buffer->slot * SLOT) != SLOT ||
        fdatasync(disk->fd)) {
        say("E %s %llu %d\n", disk->name, (unsigned long long)number, errno);
        return 0;
    }
    uint64_t end = microseconds();
    disk->durable = number;
    say("W %s %llu %lluus\n", disk->name, (unsigned long long)number,
        (unsigned long long)(end - start));
    return 1;
}

static int read_next(struct disk *disk, uint64_t *number)
{
    if (!disk->durable)
        return 1;
    uint64_t oldest = disk->durable > disk->slots ? disk->durable - disk->slots + 1 : 1;
    if (*number < oldest || *number > disk->durable)
        *number = oldest;
    uint64_t slot = slot_of(disk, *number), start = microseconds();
    errno = 0;
    if (pread(disk->fd, disk->buffer, SLOT, slot * SLOT) != SLOT) {
        say("E %s %llu %d\n", disk->name, (unsigned long long)*number, errno);
        return 0;
    }
    uint64_t end = microseconds();
    int64_t got = number_in(disk->buffer, disk, slot);
    if (got == (int64_t)*number)
        say("V %s %llu %lluus\n", disk->name, (unsigned long long)*number,
            (unsigned long long)(end - start));
    else
        say("R %s bad %llu want=%llu got=%lld count=1\n", disk->name, (unsigned long long)slot,
            (unsigned long long)*number, (long long)got);
    ++*number;
    return 1;
}

static void *work(void *argument)
{
    struct disk *disk = argument;
    uint64_t number = 1;
    while (disk->healthy) {
        int good = 1;
        pthread_mutex_lock(&disk->lock);
        if (!held)
            good = disk->reading ? read_next(disk, &number) : write_next(disk);
        pthread_mutex_unlock(&disk->lock);
        usleep((good ? pause_ms : 200) * 1000);
    }
    return NULL;
}

static void start_disk(char letter)
{
    char path[16];
    snprintf(path, sizeof path, "/dev/vd%c", letter);
    int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC), reading = read_only;
    if (fd < 0 && (errno == EACCES || errno == EROFS)) {
        fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
        reading = 1;
    }
    if (fd < 0)
        return;
    struct disk *disk = &disks[disk_count++];
    disk->reading = reading;
    uint64_t size = 0;
    ioctl(fd, BLKGETSIZE64, &size);
    if (size > region)
        size = region;
    disk->fd = fd;
    disk->slots = 1;
    while (disk->slots * 2 * SLOT <= size)
        disk->slots *= 2;
    strcpy(disk->name, path + 5);
    disk->buffer = aligned_alloc(SLOT, SLOT);
    disk->chunk = aligned_alloc(SLOT, CHUNK * SLOT);
    disk->found = calloc(disk->slots, sizeof *disk->found);
    pthread_mutex_init(&disk->lock, NULL);
    disk->healthy = verify(disk, 'B');
    pthread_t thread;
    pthread_create(&thread, NULL, work, disk);
}

static void power_off(void)
{
    held = 1;
    for (int i = 0; i < disk_count; i++)
        pthread_mutex_lock(&disks[i].lock);
    say("S\n");
    tcdrain(console);
    reboot(RB_POWER_OFF);
}

static void obey(const char *command)
{
    if (!strcmp(command, "read")) {
        for (int i = 0; i < disk_count; i++) {
            pthread_mutex_lock(&disks[i].lock);
            verify(&disks[i], 'R');
            pthread_mutex_unlock(&disks[i].lock);
        }
    } else if (!strcmp(command, "hold") || !strcmp(command, "go")) {
        held = *command == 'h';
        for (int i = 0; i < disk_count; i++) {
            pthread_mutex_lock(&disks[i].lock); /* the record in flight is done after this */
            pthread_mutex_unlock(&disks[i].lock);
        }
        say(held ? "H\n" : "G\n");
    } else if (!strcmp(command, "stop")) {
        power_off();
    } else if (*command) {
        say("? %s\n", command);
    }
}

static void load_modules(void)
{
    for (char letter = 'a'; letter <= 'z'; letter++) {
        char path[] = "/modules/a";
        path[9] = letter;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            return;
        syscall(SYS_finit_module, fd, "", 0);
        close(fd);
    }
}

static void open_console(void)
{
    console = open("/dev/ttyS0", O_RDWR | O_NOCTTY | O_CLOEXEC);
    struct termios terminal;
    tcgetattr(console, &terminal);
    cfmakeraw(&terminal);
    cfsetspeed(&terminal, B115200);
    tcsetattr(console, TCSANOW, &terminal);
}

static const char *option(char *line, const char *name)
{
    static char value[32];
    char *start = strstr(line, name);
    if (!start || sscanf(start + strlen(name), "=%31s", value) != 1)
        return NULL;
    return value;
}

static void read_options(void)
{
    char line[2048] = "";
    int fd = open("/proc/cmdline", O_RDONLY);
    ssize_t length = read(fd, line, sizeof line - 1);
    close(fd);
    if (length <= 0)
        return;
    const char *value;
    if ((value = option(line, "witness.region"))) {
        char *unit;
        region = strtoull(value, &unit, 10);
        region <<= *unit == 'G' ? 30 : *unit == 'M' ? 20 : *unit == 'K' ? 10 : 0;
    }
    if ((value = option(line, "witness.pause_ms")))
        pause_ms = atol(value);
    if ((value = option(line, "witness.mode")))
        read_only = !strcmp(value, "read");
    if ((value = option(line, "witness.wait")))
        wait_first = atol(value);
}

/* Everything after this is as after a boot, though the guest may have been saved meanwhile. */
static void wait_for_a_line(void)
{
    char byte = 0;
    say("C\n");
    while (byte != '\n')
        if (read(console, &byte, 1) != 1)
            byte = 0;
}

int main(void)
{
    mkdir("/dev", 0755);
    mkdir("/proc", 0755);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    mount("proc", "/proc", "proc", 0, NULL);
    for (uint32_t i = 0; i < 256; i++) {
        crc_table[i] = i;
        for (int bit = 0; bit < 8; bit++)
            crc_table[i] = crc_table[i] >> 1 ^ (crc_table[i] & 1 ? 0xEDB88320u : 0);
    }
    read_options();
    load_modules();
    open_console();
    if (wait_first)
        wait_for_a_line();
    for (char letter = 'a'; letter < 'a' + DISKS; letter++)
        start_disk(letter);

    struct pollfd inputs[1 + BUTTONS] = {{console, POLLIN, 0}};
    int count = 1;
    for (int i = 0; i < BUTTONS; i++) {
        char path[32];
        snprintf(path, sizeof path, "/dev/input/event%d", i);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0)
            inputs[count++] = (struct pollfd){fd, POLLIN, 0};
    }
    char command[64];
    size_t length = 0;
    while (poll(inputs, count, -1) >= 0 || errno == EINTR) {
        char byte;
        if (inputs[0].revents & POLLIN && read(console, &byte, 1) == 1) {
            if (byte == '\n' || byte == '\r') {
                command[length] = 0;
                length = 0;
                obey(command);
            } else if (length < sizeof command - 1) {
                command[length++] = byte;
            }
        }
        for (int i = 1; i < count; i++) {
            struct input_event event;
            if (inputs[i].revents & POLLIN && read(inputs[i].fd, &event, sizeof event) > 0 &&
                event.type == EV_KEY && event.code == KEY_POWER && event.value == 1) {
                say("P\n");
                power_off();
            }
        }
    }
    return 1;
}
