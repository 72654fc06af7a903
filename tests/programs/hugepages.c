/*
 * hugepages [MEGABYTES]: memory that asked for huge pages (madvise(2), MADV_HUGEPAGE). One 2 MiB block in each step is
 * checked and written again. Reports AnonHugePages of that mapping, in MiB.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BLOCK (2UL << 20)
#define WORDS (BLOCK / sizeof(uint64_t))

static void fail(const char *what)
{
	printf("BAD hugepages: %s\n", what);
	fflush(stdout);
	exit(1);
}

static void fill(uint64_t *block, uint64_t seed)
{
	for (size_t i = 0; i < WORDS; i++)
		block[i] = (seed + i) * 0x9e3779b97f4a7c15ULL;
}

static void check(const uint64_t *block, uint64_t seed)
{
	for (size_t i = 0; i < WORDS; i++)
		if (block[i] != (seed + i) * 0x9e3779b97f4a7c15ULL)
			fail("a page has another content");
}

/* AnonHugePages of the mappings that lie in [start, end), from /proc/self/smaps. */
static unsigned long huge_megabytes(uintptr_t start, uintptr_t end)
{
	FILE *smaps = fopen("/proc/self/smaps", "r");
	char line[4096];
	unsigned long total = 0, from, to, kilobytes;
	int inside = 0;

	if (!smaps)
		fail("cannot open /proc/self/smaps");
	while (fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			inside = from >= start && to <= end;
		else if (inside && sscanf(line, "AnonHugePages: %lu kB", &kilobytes) == 1)
			total += kilobytes;
	}
	fclose(smaps);
	return total / 1024;
}

int main(int argc, char **argv)
{
	size_t blocks = (argc > 1 ? strtoul(argv[1], NULL, 10) : 64) * 1024 * 1024 / BLOCK;
	/* One block more, so that the start can be aligned. */
	char *raw = mmap(NULL, (blocks + 1) * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (raw == MAP_FAILED)
		fail("mmap");
	char *start = (char *)(((uintptr_t)raw + BLOCK - 1) & ~(BLOCK - 1));
	if (madvise(start, blocks * BLOCK, MADV_HUGEPAGE))
		fail("madvise");
	uint64_t *seeds = calloc(blocks, sizeof(uint64_t));
	if (!seeds)
		fail("calloc");
	for (size_t i = 0; i < blocks; i++)
		fill((uint64_t *)(start + i * BLOCK), seeds[i] = i + 1);

	for (long n = 1;; n++) {
		size_t i = (size_t)n % blocks;
		uint64_t *block = (uint64_t *)(start + i * BLOCK);
		check(block, seeds[i]);
		fill(block, seeds[i] += blocks);
		unsigned long huge = huge_megabytes((uintptr_t)start, (uintptr_t)start + blocks * BLOCK);
		printf("hugepages %ld ok huge %lu of %zu\n", n, huge, blocks * 2);
		fflush(stdout);
		usleep(100000);
	}
}
