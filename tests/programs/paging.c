/*
 * paging MEGABYTES PATTERN [THREADS [THINK_NS [SEED]]]: threads that touch pages for ever and know what each must hold. Each
 * thread has a part of the memory of its own. A touch reads and checks the page; every eighth one rewrites it. Patterns:
 *   sequential   page after page
 *   strided      every 17th page, then the same one page further on
 *   hotcold      80 % of the touches in the first 20 % of the pages
 *   uniform      any page
 *   writer       page after page, and each is rewritten: only its first word is checked before, so that nothing slows it down
 *   idle         page after page, a hundred a second
 * THINK_NS is the time from one touch of a thread to the next; without it they go as fast as they can.
 *
 * Answers each line that comes over TCP, port 7000, with: touches N checked N wrong N gap_us N. Checked are the touches that looked at
 * every word. The gap is the longest time between two touches of one thread since the last question, whoever asked it. The order
 * of the touches depends on nothing but the arguments.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define WORDS (PAGE / sizeof(uint64_t))
#define THREADS_MAX 64
#define STRIDE 17
#define REWRITE_EVERY 8
#define IDLE_NS 10000000
/* Nobody sleeps for less, and nobody makes up for more. */
#define NAP_NS 200000
#define PORT 7000

enum pattern { SEQUENTIAL, STRIDED, HOTCOLD, UNIFORM, WRITER, IDLE };
static const char *const names[] = { "sequential", "strided", "hotcold", "uniform", "writer", "idle" };

struct worker {
	_Alignas(128) size_t first; /* of its pages */
	size_t pages;
	uint64_t random;
	atomic_ulong touches;
	atomic_long touched_ns, gap_ns;
};

static struct worker workers[THREADS_MAX];
static int threads;
static enum pattern pattern;
static int64_t think_ns;
static uint64_t seed;
static char *memory;
static uint32_t *versions; /* of each page */
static atomic_ulong wrong;

static void need(int ok, const char *what)
{
	if (!ok) {
		printf("BAD paging: %s: ", what);
		fflush(stdout);
		perror(NULL);
		exit(1);
	}
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000L + now.tv_nsec;
}

/* The first word of a page of this version; the others follow from it. */
static uint64_t first_word(size_t page, uint32_t version)
{
	uint64_t x = (seed << 56 ^ (uint64_t)version << 32 ^ page) + 0x9e3779b97f4a7c15ULL;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

static uint64_t *words(size_t page)
{
	return (uint64_t *)(memory + page * PAGE);
}

static void fill(size_t page)
{
	uint64_t *at = words(page), word = first_word(page, versions[page]);

	for (size_t i = 0; i < WORDS; i++)
		at[i] = word + i * 0x9e3779b97f4a7c15ULL;
}

static void check(size_t page, size_t count)
{
	const uint64_t *at = words(page);
	uint64_t word = first_word(page, versions[page]);

	for (size_t i = 0; i < count; i++, word += 0x9e3779b97f4a7c15ULL) {
		uint64_t got = at[i];

		if (got == word)
			continue;
		atomic_fetch_add(&wrong, 1);
		fprintf(stderr, "BAD paging: page %zu at %p, version %u: word %zu is %#lx instead of %#lx, now %#lx\n",
			page, (const void *)at, versions[page], i, got, word, ((volatile const uint64_t *)at)[i]);
		abort();
	}
}

/* xorshift64 */
static size_t below(struct worker *worker, size_t limit)
{
	worker->random ^= worker->random << 13;
	worker->random ^= worker->random >> 7;
	worker->random ^= worker->random << 17;
	return (size_t)(worker->random >> 16) % limit;
}

/* The page of touch number n, within the worker's part. */
static size_t next_page(struct worker *worker, size_t n)
{
	size_t pages = worker->pages, hot = pages / 5 + 1;

	switch (pattern) {
	case STRIDED: {
		size_t in_a_row = (pages + STRIDE - 1) / STRIDE;
		return (n % in_a_row * STRIDE + n / in_a_row) % pages;
	}
	case HOTCOLD:
		if (below(worker, 10) < 8 || hot == pages)
			return below(worker, hot);
		return hot + below(worker, pages - hot);
	case UNIFORM:
		return below(worker, pages);
	default:
		return n % pages;
	}
}

static void touch(struct worker *worker, size_t n)
{
	size_t page = worker->first + next_page(worker, n);

	check(page, pattern == WRITER ? 1 : WORDS);
	if (pattern == WRITER || n % REWRITE_EVERY == REWRITE_EVERY - 1) {
		versions[page]++;
		fill(page);
	}
	atomic_fetch_add_explicit(&worker->touches, 1, memory_order_relaxed);
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	int64_t due = now_ns();

	for (size_t n = 0;; n++) {
		touch(worker, n);
		int64_t now = now_ns();
		int64_t gap = now - atomic_exchange_explicit(&worker->touched_ns, now, memory_order_relaxed);
		if (gap > atomic_load_explicit(&worker->gap_ns, memory_order_relaxed))
			atomic_store_explicit(&worker->gap_ns, gap, memory_order_relaxed);
		due += think_ns;
		if (due < now - NAP_NS)
			due = now;
		if (due > now + NAP_NS) {
			struct timespec pause = { .tv_sec = (due - now) / 1000000000L, .tv_nsec = (due - now) % 1000000000L };
			nanosleep(&pause, NULL);
		}
	}
	return NULL;
}

static unsigned long touches(void)
{
	unsigned long sum = 0;

	for (int i = 0; i < threads; i++)
		sum += atomic_load(&workers[i].touches);
	return sum;
}

/* The longest gap since the last question; one that has not ended yet counts as well. */
static int64_t longest_gap_us(void)
{
	int64_t longest = 0;

	for (int i = 0; i < threads; i++) {
		int64_t gap = atomic_exchange(&workers[i].gap_ns, 0), open = now_ns() - atomic_load(&workers[i].touched_ns);

		gap = open > gap ? open : gap;
		longest = gap > longest ? gap : longest;
	}
	return longest / 1000;
}

static void start(void *(*function)(void *), void *argument)
{
	pthread_t thread;

	need(!pthread_create(&thread, NULL, function, argument), "pthread_create");
	pthread_detach(thread);
}

static void *answer(void *argument)
{
	FILE *in = fdopen((int)(long)argument, "r"), *out = fdopen(dup((int)(long)argument), "w");
	char line[100];

	need(in && out, "fdopen");
	while (fgets(line, sizeof(line), in)) {
		unsigned long sum = touches(), checked = pattern == WRITER ? 0 : sum;

		if (fprintf(out, "touches %lu checked %lu wrong %lu gap_us %ld\n", sum, checked, atomic_load(&wrong),
			    longest_gap_us()) < 0 || fflush(out))
			break;
	}
	fclose(in);
	fclose(out);
	return NULL;
}

static void *serve(void *argument)
{
	int one = 1, listener = socket(AF_INET6, SOCK_STREAM, 0);
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_port = htons(PORT) };

	(void)argument;
	need(listener >= 0 && !setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)), "socket");
	need(!bind(listener, (struct sockaddr *)&address, sizeof(address)) && !listen(listener, 16), "bind");
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		need(fd >= 0, "accept");
		setsockopt(fd, IPPROTO_TCP, 1 /* TCP_NODELAY */, &one, sizeof(one));
		start(answer, (void *)(long)fd);
	}
	return NULL;
}

static void understand(int argc, char **argv)
{
	need(argc > 2 && (threads = argc > 3 ? atoi(argv[3]) : 1) > 0 && threads <= THREADS_MAX, "the arguments");
	while (pattern <= IDLE && strcmp(argv[2], names[pattern]))
		pattern++;
	need(pattern <= IDLE, "the pattern");
	think_ns = argc > 4 ? atol(argv[4]) : 0;
	seed = argc > 5 ? strtoul(argv[5], NULL, 10) : 1;
	if (pattern == IDLE && think_ns < IDLE_NS)
		think_ns = IDLE_NS;
}

int main(int argc, char **argv)
{
	understand(argc, argv);
	size_t pages = strtoul(argv[1], NULL, 10) * ((1 << 20) / PAGE);
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	versions = calloc(pages, sizeof(*versions));
	need(memory != MAP_FAILED && versions && pages >= (size_t)threads * 2, "memory");
	for (size_t page = 0; page < pages; page++)
		fill(page);
	for (int i = 0; i < threads; i++) {
		struct worker *worker = &workers[i];

		worker->first = pages * i / threads;
		worker->pages = pages * (i + 1) / threads - worker->first;
		worker->random = (seed + 1) * 0x9e3779b97f4a7c15ULL + i;
		worker->touched_ns = now_ns();
		start(work, worker);
	}
	start(serve, NULL);
	for (long n = 1;; n++) {
		printf("paging %ld ok touches %lu wrong %lu\n", n, touches(), atomic_load(&wrong));
		fflush(stdout);
		usleep(200000);
	}
}
