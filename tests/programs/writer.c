/*
 * writer MEGABYTES HOT_MEGABYTES [MEGABYTES_PER_SECOND]: memory that is mostly idle. One thread rewrites the hot part page by page
 * (4 KiB), as fast as it can unless a rate is given. A line every 200 ms with the number of pages written so far. For measurements:
 * nothing is checked but the idle part, once, when SIGUSR1 asks for it.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define WORDS (PAGE / sizeof(uint64_t))
#define LINE_NS 200000000L
/* Pages between two looks at the clock. */
#define BATCH 64

static volatile sig_atomic_t asked;

static void on_signal(int signal)
{
	(void)signal;
	asked = 1;
}

static void fail(const char *what)
{
	printf("BAD writer: %s\n", what);
	fflush(stdout);
	exit(1);
}

/* xorshift64: content that does not compress. */
static void fill(uint64_t *page, uint64_t seed)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15ULL + 1;

	for (size_t i = 0; i < WORDS; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		page[i] = x;
	}
}

static void check(const uint64_t *page, uint64_t seed)
{
	uint64_t expected[WORDS];

	fill(expected, seed);
	for (size_t i = 0; i < WORDS; i++)
		if (page[i] != expected[i])
			fail("an idle page has another content");
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000L + now.tv_nsec;
}

static size_t argument(int argc, char **argv, int index, size_t otherwise)
{
	return argc > index ? strtoul(argv[index], NULL, 10) : otherwise;
}

int main(int argc, char **argv)
{
	size_t pages = argument(argc, argv, 1, 64) * (1 << 20) / PAGE;
	size_t hot = argument(argc, argv, 2, 1) * (1 << 20) / PAGE;
	size_t pages_per_second = argument(argc, argv, 3, 0) * (1 << 20) / PAGE;
	char *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED || hot == 0 || hot > pages)
		fail("no memory, or no hot part of it");
	signal(SIGUSR1, on_signal);
	for (size_t i = 0; i < pages; i++)
		fill((uint64_t *)(memory + i * PAGE), i);

	int64_t begun = now_ns(), line_at = begun;
	uint64_t written = 0;
	for (long n = 1;;) {
		for (int i = 0; i < BATCH; i++, written++)
			fill((uint64_t *)(memory + written % hot * PAGE), written);
		int64_t now = now_ns();
		if (now >= line_at) {
			printf("writer %ld ok pages %lu\n", n++, written);
			fflush(stdout);
			line_at = now + LINE_NS;
		}
		if (asked) {
			asked = 0;
			for (size_t i = hot; i < pages; i++)
				check((uint64_t *)(memory + i * PAGE), i);
			printf("idle pages are right\n");
			fflush(stdout);
		}
		int64_t due = pages_per_second ? begun + (int64_t)(written * 1000000000.0 / (double)pages_per_second) : 0;
		if (due > now)
			usleep((useconds_t)((due - now) / 1000));
	}
}
