/*
 * shuffle [SEED]: four threads move their regions to wherever the kernel has room, which is mostly where another thread
 * has just moved something away, and seldom look at a page. All regions have the same size, so that every gap fits.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 8
#define LENGTH ((size_t)PAGES * PAGE)
#define REGIONS 48
#define THREADS 4

struct worker {
	unsigned int random;
	char *regions[REGIONS];
	int emptied[REGIONS][PAGES];
};

static struct worker workers[THREADS];
static volatile long operations[THREADS], looks[THREADS];

static void fail(const char *what, const void *where, uint64_t got, uint64_t expected)
{
	printf("BAD shuffle: %s at %p: %#lx instead of %#lx\n", what, where, got, expected);
	fflush(stdout);
	_exit(1);
}

static uint64_t word(long number, int region, int page)
{
	return (uint64_t)(number + 1) << 32 | (uint64_t)(region + 1) << 16 | (uint64_t)(page + 1);
}

static char *map(void)
{
	void *start = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (start == MAP_FAILED)
		fail("mmap", NULL, 0, 0);
	return start;
}

static void look(long number, int region, int page)
{
	const uint64_t *words = (const uint64_t *)(workers[number].regions[region] + page * PAGE);
	uint64_t expected = workers[number].emptied[region][page] ? 0 : word(number, region, page);

	for (int i = 0; i < 512; i += 73)
		if (words[i] != expected)
			fail("a page has another content", &words[i], words[i], expected);
	looks[number]++;
}

static void one_operation(long number)
{
	struct worker *worker = &workers[number];
	int region = (int)(rand_r(&worker->random) % REGIONS), page = (int)(rand_r(&worker->random) % PAGES);
	char *start = worker->regions[region];
	unsigned int what = (unsigned int)rand_r(&worker->random) % 400;

	if (what < 2) {
		look(number, region, page);
	} else if (what == 2) {
		if (madvise(start + page * PAGE, PAGE, MADV_DONTNEED))
			fail("madvise", start, 0, 0);
		worker->emptied[region][page] = 1;
	} else if (what < 40) {
		/* Room that others find is made and goes away. */
		if (munmap(map(), LENGTH))
			fail("munmap", start, 0, 0);
	} else {
		char *place = map();
		if (mremap(start, LENGTH, LENGTH, MREMAP_MAYMOVE | MREMAP_FIXED, place) != place)
			fail("mremap", start, 0, 0);
		worker->regions[region] = place;
	}
}

static void *run(void *argument)
{
	for (long number = (long)argument;; operations[number]++)
		one_operation(number);
	return NULL;
}

int main(int argc, char **argv)
{
	unsigned int seed = argc > 1 ? (unsigned int)strtoul(argv[1], NULL, 10) : 1;

	for (long t = 0; t < THREADS; t++) {
		workers[t].random = seed * 7919 + (unsigned int)t;
		for (int r = 0; r < REGIONS; r++) {
			workers[t].regions[r] = map();
			for (int p = 0; p < PAGES; p++)
				for (int i = 0; i < 512; i++)
					((uint64_t *)(workers[t].regions[r] + p * PAGE))[i] = word(t, r, p);
			/* So that the kernel does not make one mapping of two. */
			map();
		}
	}
	for (long t = 0; t < THREADS; t++) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, run, (void *)t))
			fail("pthread_create", NULL, 0, 0);
	}
	for (long n = 1;; n++) {
		long sum = 0, seen = 0;
		for (int t = 0; t < THREADS; t++) {
			sum += operations[t];
			seen += looks[t];
		}
		printf("shuffle %ld ok operations %ld looks %ld\n", n, sum, seen);
		fflush(stdout);
		usleep(200000);
	}
}
