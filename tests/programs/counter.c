/*
 * counter [MEGABYTES]: counts, ten lines a second, and checks after each step that nothing but time has passed.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define STEP_NS 100000000L
/* A step may take longer, as the machine may be busy or the workload paused; a jump of the clock is more. */
#define JUMP_S 600

static void fail(const char *what)
{
	printf("BAD counter: %s\n", what);
	fflush(stdout);
	exit(1);
}

/* FNV-1a over 64-bit words. */
static uint64_t checksum(const uint64_t *words, size_t count)
{
	uint64_t hash = 14695981039346656037ULL;
	for (size_t i = 0; i < count; i++)
		hash = (hash ^ words[i]) * 1099511628211ULL;
	return hash;
}

static double series(long terms)
{
	double sum = 0;
	for (long i = 1; i <= terms; i++)
		sum += 1.0 / (double)i;
	return sum;
}

int main(int argc, char **argv)
{
	size_t count = (argc > 1 ? strtoul(argv[1], NULL, 10) : 32) * 1024 * 1024 / sizeof(uint64_t);
	uint64_t *words = malloc(count * sizeof(uint64_t));
	if (!words)
		fail("no memory");
	for (size_t i = 0; i < count; i++)
		words[i] = i * 0x9e3779b97f4a7c15ULL;
	uint64_t expected = checksum(words, count);

	pid_t pid = getpid();
	long tid = syscall(SYS_gettid);
	struct timespec before, now;
	clock_gettime(CLOCK_MONOTONIC, &before);
	double sum = 0;
	for (long n = 1;; n++) {
		sum += 1.0 / (double)n;
		if (checksum(words, count) != expected)
			fail("the memory has changed");
		if (getpid() != pid || syscall(SYS_gettid) != tid)
			fail("PID or TID is another");
		if (sum != series(n))
			fail("floating point is wrong");
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec < before.tv_sec || (now.tv_sec == before.tv_sec && now.tv_nsec < before.tv_nsec))
			fail("the clock went backwards");
		if (now.tv_sec > before.tv_sec + JUMP_S)
			fail("the clock jumped");
		before = now;
		printf("counter %ld ok pid %d tid %ld\n", n, pid, tid);
		fflush(stdout);

		char *scratch = malloc(1000 + (size_t)n % 5000);
		if (!scratch)
			fail("malloc");
		scratch[0] = 1;
		free(scratch);
		struct timespec rest = {0, STEP_NS};
		if (nanosleep(&rest, NULL))
			fail("nanosleep was interrupted although no signal came");
	}
}
