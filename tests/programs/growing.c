/*
 * growing [MEGABYTES]: memory that asks for huge pages only when each 2 MiB block has one small page, and then fills
 * slowly: one page of each block after the other. All that was written is checked. At a destination one write fills a
 * whole block with zeros, which then must not hide the pages that come later.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define BLOCK (2UL << 20)
#define PAGE 4096UL
#define PAGES (BLOCK / PAGE)
#define WORDS (PAGE / sizeof(uint64_t))

static char *start;
static size_t blocks;

static uint64_t *page(size_t number)
{
	/* Page after page of every block, so that each step touches all of them. */
	return (uint64_t *)(start + number % blocks * BLOCK + number / blocks * PAGE);
}

static void fill(size_t number, uint64_t round)
{
	for (size_t i = 0; i < WORDS; i++)
		page(number)[i] = (number + 1) * 0x9e3779b97f4a7c15ULL + round + i;
}

static void check(size_t number, uint64_t round)
{
	for (size_t i = 0; i < WORDS; i++)
		if (page(number)[i] != (number + 1) * 0x9e3779b97f4a7c15ULL + round + i) {
			printf("BAD growing: page %zu of block %zu has another content\n", number / blocks, number % blocks);
			fflush(stdout);
			exit(1);
		}
}

int main(int argc, char **argv)
{
	blocks = (argc > 1 ? strtoul(argv[1], NULL, 10) : 64) * 1024 * 1024 / BLOCK;
	/* One block more, so that the start can be aligned. */
	char *raw = mmap(NULL, (blocks + 1) * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (raw == MAP_FAILED)
		return 1;
	start = (char *)(((uintptr_t)raw + BLOCK - 1) & ~(BLOCK - 1));
	for (size_t number = 0; number < blocks; number++)
		fill(number, 0);
	if (madvise(start, blocks * BLOCK, MADV_HUGEPAGE))
		return 1;
	size_t filled = blocks;
	uint64_t round = 0;
	for (unsigned long step = 1;; step++) {
		for (size_t i = 0; i < blocks; i++)
			fill(filled++, round);
		for (size_t number = 0; number < filled; number++)
			check(number, round);
		printf("growing %lu ok pages %zu\n", step, filled);
		fflush(stdout);
		usleep(20000);
		if (filled + blocks > blocks * PAGES) {
			/* From the beginning, with holes again. */
			if (madvise(start, blocks * BLOCK, MADV_DONTNEED))
				return 1;
			round++;
			for (filled = 0; filled < blocks; filled++)
				fill(filled, round);
		}
	}
}
