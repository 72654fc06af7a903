/*
 * torture [SEED]: three threads map, unmap, move, protect, empty, rewrite and fork memory without pause, and know the
 * content of every page. A page's content follows from its generation number; generation 0 is all zeros.
 *
 * Found three bugs that no ordinary program showed: pages whose mapping went away and came back between two looks.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define WORDS (PAGE / sizeof(uint64_t))
#define REGIONS 40
#define PAGES_MAX 200
#define THREADS 3
#define READ_WRITE (PROT_READ | PROT_WRITE)

struct region {
	char *start;           /* NULL: not mapped */
	size_t pages;
	uint64_t *generations; /* one for each page */
};

struct worker {
	unsigned int random;
	uint64_t generation;
	struct region regions[REGIONS];
};

static volatile long operations[THREADS], forks;

static void fail(const char *what, const void *where, uint64_t got, uint64_t expected)
{
	printf("BAD torture: %s at %p: %#lx instead of %#lx\n", what, where, got, expected);
	fflush(stdout);
	_exit(1);
}

static void need(int ok, const char *what)
{
	if (!ok) {
		perror("BAD torture");
		fail(what, NULL, 0, 0);
	}
}

static unsigned int below(struct worker *worker, unsigned int limit)
{
	return (unsigned int)rand_r(&worker->random) % limit;
}

/* The word at `index` of a page of this generation. */
static uint64_t word(uint64_t generation, size_t index)
{
	uint64_t x = generation + index;

	if (!generation)
		return 0;
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	return x ^ x >> 29;
}

static void *map(size_t pages)
{
	void *start = mmap(NULL, pages * PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(start != MAP_FAILED, "mmap");
	return start;
}

/* Gives a page a new content. */
static void rewrite(struct worker *worker, struct region *region, size_t page)
{
	uint64_t *words = (uint64_t *)(region->start + page * PAGE);

	/* Steps of a page's words, so that no two generations share a word. */
	region->generations[page] = worker->generation += WORDS;
	for (size_t i = 0; i < WORDS; i++)
		words[i] = word(worker->generation, i);
}

static void rewrite_some(struct worker *worker, struct region *region, unsigned int one_in)
{
	for (size_t page = 0; page < region->pages; page++)
		if (below(worker, one_in) == 0)
			rewrite(worker, region, page);
}

/* Looks at words all over every page: at every one would leave no time for anything else. */
static void check(const struct region *region)
{
	for (size_t page = 0; page < region->pages; page++) {
		const uint64_t *words = (const uint64_t *)(region->start + page * PAGE);
		for (size_t i = page % 7; i < WORDS; i += 61) {
			uint64_t expected = word(region->generations[page], i);
			if (words[i] != expected)
				fail("a page has another content", &words[i], words[i], expected);
		}
	}
}

static void begin(struct worker *worker, struct region *region)
{
	region->pages = 1 + below(worker, PAGES_MAX);
	region->start = map(region->pages);
	region->generations = calloc(region->pages, sizeof(uint64_t));
	need(region->generations != NULL, "calloc");
	rewrite_some(worker, region, 2);
}

static void end(struct region *region)
{
	check(region);
	need(munmap(region->start, region->pages * PAGE) == 0, "munmap");
	free(region->generations);
	region->start = NULL;
}

/* A new mapping at the same place. */
static void map_over(struct worker *worker, struct region *region)
{
	check(region);
	void *start = mmap(region->start, region->pages * PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	need(start == region->start, "mmap at the same place");
	memset(region->generations, 0, region->pages * sizeof(uint64_t));
	rewrite_some(worker, region, 2);
}

static void empty(struct worker *worker, struct region *region)
{
	size_t first = below(worker, (unsigned int)region->pages);
	size_t count = 1 + below(worker, (unsigned int)(region->pages - first));

	need(madvise(region->start + first * PAGE, count * PAGE, MADV_DONTNEED) == 0, "madvise");
	memset(region->generations + first, 0, count * sizeof(uint64_t));
}

static void resize(struct worker *worker, struct region *region)
{
	size_t pages = 1 + below(worker, PAGES_MAX);
	void *start = mremap(region->start, region->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE);

	need(start != MAP_FAILED, "mremap");
	region->generations = realloc(region->generations, pages * sizeof(uint64_t));
	need(region->generations != NULL, "realloc");
	for (size_t page = region->pages; page < pages; page++)
		region->generations[page] = 0;
	region->start = start;
	region->pages = pages;
}

/* Moves a region onto a place that was mapped a moment ago. */
static void move(struct region *region)
{
	size_t length = region->pages * PAGE;
	void *place = map(region->pages);

	need(mremap(region->start, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place, "mremap to a place");
	region->start = place;
}

static void protect(struct region *region, int protection)
{
	need(mprotect(region->start, region->pages * PAGE, protection) == 0, "mprotect");
	if (protection & PROT_READ)
		check(region);
	else
		usleep(200);
	need(mprotect(region->start, region->pages * PAGE, READ_WRITE) == 0, "mprotect");
}

/* A child sees the same content, and shares the pages until one writes. */
static void check_in_child(struct worker *worker)
{
	int status;
	pid_t child = fork();

	need(child >= 0, "fork");
	if (child == 0) {
		for (size_t i = 0; i < REGIONS; i++)
			if (worker->regions[i].start)
				check(&worker->regions[i]);
		_exit(0);
	}
	need(waitpid(child, &status, 0) == child && status == 0, "a child found a wrong page");
	__sync_fetch_and_add(&forks, 1);
}

static void one_operation(struct worker *worker)
{
	struct region *region = &worker->regions[below(worker, REGIONS)];

	if (!region->start) {
		begin(worker, region);
		return;
	}
	switch (below(worker, 12)) {
	case 0: end(region); break;
	case 1: map_over(worker, region); break;
	case 2: empty(worker, region); break;
	case 3: resize(worker, region); break;
	case 4: protect(region, PROT_NONE); break;
	case 5: protect(region, PROT_READ); break;
	case 6: move(region); break;
	case 7:
		if (below(worker, 40) == 0)
			check_in_child(worker);
		break;
	default:
		for (int i = 0; i < 20; i++)
			rewrite(worker, region, below(worker, (unsigned int)region->pages));
		if (below(worker, 4) == 0)
			check(region);
	}
}

static struct worker workers[THREADS];

static void *run(void *argument)
{
	long number = (long)argument;

	for (;; operations[number]++) {
		one_operation(&workers[number]);
		if (operations[number] % 8 == 0)
			usleep(500);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	unsigned int seed = argc > 1 ? (unsigned int)strtoul(argv[1], NULL, 10) : 1;

	for (long i = 0; i < THREADS; i++) {
		pthread_t thread;
		workers[i].random = seed * 7919 + (unsigned int)i;
		/* Generations of different threads never meet. */
		workers[i].generation = (uint64_t)(i + 1) << 40;
		need(pthread_create(&thread, NULL, run, (void *)i) == 0, "pthread_create");
	}
	for (long n = 1;; n++) {
		long sum = 0;
		for (int i = 0; i < THREADS; i++)
			sum += operations[i];
		printf("torture %ld ok operations %ld forks %ld\n", n, sum, forks);
		fflush(stdout);
		usleep(200000);
	}
}
