/* The workload of a virtual machine: memory, disk, network and clocks that check themselves. The README says what it prints. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <linux/fs.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

enum { PAGE = 4096, WORDS = PAGE / 8, PAGES_PER_MB = 256, THREADS_MAX = 64, BLOCK = 65536, PORT = 7 };

/* Writers and the disk thread sleep this long when they are ahead of their rate. */
static const struct timespec pause_ms = {0, 1000000};

static struct {
    unsigned long mb, mb_per_s, tick_ms, threads, disk_mb_per_s;
} options = {.mb = 16, .mb_per_s = 4, .tick_ms = 20, .threads = 0, .disk_mb_per_s = 8};

struct writer {
    size_t first, pages;         /* its part of the buffer */
    double rate;                 /* pages a second */
    _Atomic uint64_t n, chk, err;
    _Atomic uint64_t gap_us;     /* the longest way between two rounds since the last tick */
};

static uint64_t *buffer;
static uint32_t *generations;
static struct writer writers[THREADS_MAX];
static _Atomic uint64_t disk_passes, disk_errors;

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static _Noreturn void fatal(const char *what)
{
    printf("BAD %s: %m\n", what);
    fflush(stdout);
    exit(1);
}

/* A bijection that spreads the bits: the finalizer of splitmix64. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* A page in its generation; its words follow in equal steps. Nobody has written generation 0: zeroes. */
static uint64_t seed(size_t page, uint32_t generation)
{
    return generation ? mix(((uint64_t)page << 32 | generation) + 0x9e3779b97f4a7c15u) : 0;
}

static uint64_t step(uint32_t generation)
{
    return generation ? 0x9e3779b97f4a7c15u : 0;
}

static bool page_is(const uint64_t *page, uint64_t first, uint64_t by)
{
    uint64_t different = 0;
    for (size_t word = 0; word < WORDS; word++)
        different |= page[word] ^ (first + word * by);
    return !different;
}

static void write_page(uint64_t *page, uint64_t first, uint64_t by)
{
    for (size_t word = 0; word < WORDS; word++)
        page[word] = first + word * by;
}

/* Checks the whole page, then gives it its next generation. */
static void renew(struct writer *w, size_t number)
{
    uint64_t *page = buffer + number * WORDS;
    uint32_t generation = generations[number];
    if (!page_is(page, seed(number, generation), step(generation)))
        w->err++;
    generations[number] = ++generation;
    uint64_t first = seed(number, generation);
    write_page(page, first, step(generation));
    w->chk = mix(w->chk + first);
    w->n++;
}

/* How much may be done by now at `rate`, never more than a short burst. */
static double earned(double credit, double seconds, double rate, double burst)
{
    credit += seconds * rate;
    return credit < burst ? credit : burst;
}

static void note_gap(_Atomic uint64_t *gap_us, double seconds)
{
    uint64_t us = (uint64_t)(seconds * 1e6);
    if (us > *gap_us)
        *gap_us = us;
}

static void *write_memory(void *argument)
{
    struct writer *w = argument;
    double credit = 0, last = now(CLOCK_MONOTONIC);
    for (size_t next = 0;;) {
        double time = now(CLOCK_MONOTONIC);
        note_gap(&w->gap_us, time - last);
        credit = earned(credit, time - last, w->rate, 64);
        last = time;
        for (; credit >= 1; credit--, next = (next + 1) % w->pages)
            renew(w, w->first + next);
        nanosleep(&pause_ms, NULL);
    }
    return NULL;
}

static uint64_t sum_of(const uint64_t *words, size_t count)
{
    uint64_t sum = count;
    for (size_t word = 0; word < count; word++)
        sum = (sum ^ words[word]) * 0x100000001b3u + (sum >> 47);
    return sum;
}

/* Reads a block past the guest's page cache and compares it with what the first pass has read there. */
static void read_block(int disk, uint64_t *block, uint64_t *sums, size_t number, bool first_pass)
{
    ssize_t got = pread(disk, block, BLOCK, (off_t)number * BLOCK);
    uint64_t sum = got > 0 ? sum_of(block, (size_t)got / 8) : 0;
    if (first_pass)
        sums[number] = sum;
    if (got <= 0 || sum != sums[number])
        disk_errors++;
}

static void *read_disk(void *argument)
{
    int disk = *(int *)argument;
    uint64_t bytes = 0;
    if (ioctl(disk, BLKGETSIZE64, &bytes) < 0)
        fatal("size of the disk");
    size_t blocks = (bytes + BLOCK - 1) / BLOCK;
    uint64_t *sums = calloc(blocks, sizeof *sums), *block = aligned_alloc(PAGE, BLOCK);
    if (!sums || !block)
        fatal("memory for the disk");
    double rate = (double)options.disk_mb_per_s * 1048576 / BLOCK, credit = 0, last = now(CLOCK_MONOTONIC);
    for (bool first_pass = true;; first_pass = false, disk_passes++)
        for (size_t number = 0; number < blocks; number++) {
            for (; credit < 1; nanosleep(&pause_ms, NULL)) {
                double time = now(CLOCK_MONOTONIC);
                credit = earned(credit, time - last, rate, 4);
                last = time;
            }
            credit--;
            read_block(disk, block, sums, number, first_pass);
        }
    return NULL;
}

/* Memory that a client asked for. */
static struct {
    pthread_mutex_t lock;
    uint64_t *memory;
    size_t pages;
} held = {.lock = PTHREAD_MUTEX_INITIALIZER};

static size_t held_bad(void)
{
    size_t bad = 0;
    for (size_t page = 0; page < held.pages; page++)
        bad += !page_is(held.memory + page * WORDS, mix(page + 1), mix(page));
    return bad;
}

static void let_go(void)
{
    if (held.pages)
        munmap(held.memory, held.pages * PAGE);
    held.pages = 0;
}

static bool hold(size_t pages)
{
    let_go();
    void *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return false;
    held.memory = memory;
    held.pages = pages;
    for (size_t page = 0; page < pages; page++)
        write_page(held.memory + page * WORDS, mix(page + 1), mix(page));
    return true;
}

/* Answers a command; any other line is its own answer. */
static void answer(const char *line, FILE *to)
{
    unsigned long mb;
    pthread_mutex_lock(&held.lock);
    if (sscanf(line, "hold %lu", &mb) == 1)
        fprintf(to, "hold %lu %s\n", mb, mb && hold(mb * PAGES_PER_MB) ? "ok" : "failed");
    else if (!strcmp(line, "check\n"))
        fprintf(to, "check %zu bad=%zu\n", held.pages / PAGES_PER_MB, held_bad());
    else if (!strcmp(line, "drop\n")) {
        fprintf(to, "drop %zu bad=%zu\n", held.pages / PAGES_PER_MB, held_bad());
        let_go();
    } else
        fputs(line, to);
    pthread_mutex_unlock(&held.lock);
    fflush(to);
}

static void *talk(void *argument)
{
    int connection = (int)(intptr_t)argument;
    FILE *from = fdopen(connection, "r"), *to = fdopen(dup(connection), "w");
    char line[4096];
    while (from && to && fgets(line, sizeof line, from))
        answer(line, to);
    if (from)
        fclose(from);
    if (to)
        fclose(to);
    return NULL;
}

static void *serve(void *unused)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    if (listener < 0 || bind(listener, (struct sockaddr *)&any, sizeof any) < 0 || listen(listener, 16) < 0)
        fatal("listening");
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        if (connection < 0)
            continue;
        setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        pthread_t thread;
        if (pthread_create(&thread, NULL, talk, (void *)(intptr_t)connection) == 0)
            pthread_detach(thread);
        else
            close(connection);
    }
    return unused;
}

static void start(void *(*what)(void *), void *argument)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, what, argument) != 0)
        fatal("starting a thread");
}

static void read_options(void)
{
    char line[4096] = "";
    FILE *file = fopen("/proc/cmdline", "r");
    if (!file || !fgets(line, sizeof line, file))
        fatal("/proc/cmdline");
    fclose(file);
    for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
        sscanf(word, "wl=%lu,%lu,%lu,%lu", &options.mb, &options.mb_per_s, &options.tick_ms, &options.threads);
        sscanf(word, "wl.disk=%lu", &options.disk_mb_per_s);
    }
    if (!options.threads)
        options.threads = (unsigned long)sysconf(_SC_NPROCESSORS_ONLN);
    if (options.threads > THREADS_MAX || !options.mb || options.mb * PAGES_PER_MB < options.threads)
        fatal("options");
}

static void start_writers(void)
{
    size_t pages = options.mb * PAGES_PER_MB, threads = options.threads;
    buffer = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    generations = calloc(pages, sizeof *generations);
    if (buffer == MAP_FAILED || !generations)
        fatal("memory");
    for (size_t i = 0; i < threads; i++) {
        writers[i].first = pages * i / threads;
        writers[i].pages = pages * (i + 1) / threads - writers[i].first;
        writers[i].rate = (double)options.mb_per_s * PAGES_PER_MB / (double)threads;
        start(write_memory, &writers[i]);
    }
}

/* One write(2) for the whole line, so that nothing of ours comes between. `gap`: longest way between two rounds of this loop. */
static void print_tick(uint64_t seq, double gap, const char *boot)
{
    uint64_t n = 0, chk = 0, err = 0, writer_gap = 0;
    for (size_t i = 0; i < options.threads; i++) {
        n += writers[i].n;
        chk ^= writers[i].chk;
        err += writers[i].err;
        uint64_t longest = atomic_exchange(&writers[i].gap_us, 0);
        writer_gap = longest > writer_gap ? longest : writer_gap;
    }
    char line[512];
    int length = snprintf(line, sizeof line,
                          "T %lu n=%lu chk=%016lx err=%lu disk=%lu derr=%lu boot=%.8s t=%.4f real=%.4f gap=%.1f wgap=%.1f\n",
                          seq, n, chk, err, disk_passes, disk_errors, boot, now(CLOCK_MONOTONIC), now(CLOCK_REALTIME),
                          gap * 1e3, (double)writer_gap * 1e-3);
    for (int done = 0; done < length;) {
        ssize_t wrote = write(STDOUT_FILENO, line + done, (size_t)(length - done));
        if (wrote < 0)
            exit(1);
        done += (int)wrote;
    }
}

/* On the machine itself: how fast its time stamp counter runs, for the guest's kernel, which measures it wrongly when it is starved. */
static int print_tsc_khz(void)
{
    const struct timespec moment = {0, 50000000};
    double from = now(CLOCK_MONOTONIC_RAW);
    uint64_t ticks = __rdtsc();
    nanosleep(&moment, NULL);
    ticks = __rdtsc() - ticks;
    printf("%.0f\n", (double)ticks / (now(CLOCK_MONOTONIC_RAW) - from) / 1e3);
    return 0;
}

int main(int count, char **words)
{
    if (count > 1 && !strcmp(words[1], "tsc-khz"))
        return print_tsc_khz();
    char boot[64] = "";
    FILE *id = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (!id || !fgets(boot, sizeof boot, id))
        fatal("boot_id");
    fclose(id);
    read_options();
    start_writers();
    int disk = options.disk_mb_per_s ? open("/dev/vda", O_RDWR | O_DIRECT) : -1;
    if (disk >= 0)
        start(read_disk, &disk);
    start(serve, NULL);

    double last = now(CLOCK_MONOTONIC), next = last, gap = 0;
    for (uint64_t seq = 0;;) {
        double time = now(CLOCK_MONOTONIC);
        gap = time - last > gap ? time - last : gap;
        last = time;
        if (time >= next) {
            print_tick(seq++, gap, boot);
            gap = 0;
            /* Ticks that are late by a whole tick are left out, not made up for. */
            next += (double)options.tick_ms * 1e-3;
            next = next > time ? next : time + (double)options.tick_ms * 1e-3;
        }
        nanosleep(&pause_ms, NULL);
    }
}
