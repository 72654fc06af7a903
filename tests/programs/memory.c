/*
 * memory [DIRECTORY]: has memory of every kind that a mapping can be, changes some of each in every step by every way there is
 * (through one mapping, through another, through the descriptor) and checks all of it, ten lines a second.
 *
 * The content of a page follows from its kind, its number and its generation; generation 0 is what was there first.
 * DIRECTORY is for files; a file in it that is called like a JVM's counters (hsperfdata_test/1) moves along.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 64UL
#define WORDS (PAGE / sizeof(uint64_t))
#define CHECK_EVERY 5

enum kind {
	SHARED_ANONYMOUS,
	MEMFD,
	MEMFD_PRIVATE,
	UNLINKED,
	CARRIED,
	FILE_PRIVATE,
	READ_ONLY,
	NO_ACCESS,
	LOCKED,
	ADVISED,
	NAMED,
	NEIGHBOUR,
	KINDS,
};

static const char *const names[KINDS] = {
	"shared anonymous", "memfd", "private memfd", "unlinked", "carried", "private file",
	"read-only", "no access", "locked", "advised", "named",
	"neighbour",
};

struct region {
	uint64_t *pages;
	/* Where writes go: another mapping of the same memory, or the same one. */
	uint64_t *writable;
	/* Descriptor for writes past all mappings, or -1. */
	int fd;
	int protection;
	uint64_t generations[PAGES];
};

static struct region regions[KINDS];
static unsigned int seed = 1;

static void fail(const char *what, unsigned long page, uint64_t got, uint64_t expected)
{
	printf("BAD memory: %s page %lu: %#lx instead of %#lx\n", what, page, got, expected);
	fflush(stdout);
	_exit(1);
}

static void need(int ok, const char *what)
{
	if (!ok) {
		printf("BAD memory: %s: %s\n", what, strerror(errno));
		fflush(stdout);
		_exit(1);
	}
}

static uint64_t word(int kind, unsigned long page, uint64_t generation, unsigned long index)
{
	uint64_t x = ((uint64_t)kind << 56) ^ (page << 40) ^ (generation << 12) ^ index;
	/* The finalizer of MurmurHash3. */
	x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdULL;
	return x ^ (x >> 33);
}

/* What a page holds before it is written for the first time: a file's content, or zeros. */
static uint64_t original(int kind, unsigned long page, unsigned long index)
{
	return kind == FILE_PRIVATE || kind == MEMFD_PRIVATE ? word(kind, page, 0, index) : 0;
}

static void *map(size_t pages, int protection, int flags, int fd)
{
	void *place = mmap(NULL, pages * PAGE, protection, flags, fd, 0);

	need(place != MAP_FAILED, "mmap");
	return place;
}

static void write_page(int kind, unsigned long page)
{
	struct region *region = &regions[kind];
	uint64_t content[WORDS];
	uint64_t generation = ++region->generations[page];
	size_t bytes = PAGES * PAGE;

	/* Every eighth generation is all zeros. */
	for (unsigned long i = 0; i < WORDS; i++)
		content[i] = generation % 8 ? word(kind, page, generation, i) : 0;
	if (region->fd >= 0 && generation % 2) {
		need(pwrite(region->fd, content, PAGE, (off_t)(page * PAGE)) == (ssize_t)PAGE, "pwrite");
		return;
	}
	if (!(region->protection & PROT_WRITE))
		need(mprotect(region->pages, bytes, PROT_READ | PROT_WRITE) == 0, "mprotect");
	memcpy(region->writable + page * WORDS, content, PAGE);
	if (!(region->protection & PROT_WRITE))
		need(mprotect(region->pages, bytes, region->protection) == 0, "mprotect");
}

static void check_page(int kind, unsigned long page)
{
	struct region *region = &regions[kind];
	uint64_t generation = region->generations[page];

	for (unsigned long i = 0; i < WORDS; i += 37) {
		uint64_t expected = generation % 8 ? word(kind, page, generation, i) : 0;
		if (generation == 0)
			expected = original(kind, page, i);
		if (region->pages[page * WORDS + i] != expected)
			fail(names[kind], page, region->pages[page * WORDS + i], expected);
	}
}

static void check(int kind)
{
	struct region *region = &regions[kind];

	if (region->protection == PROT_NONE)
		need(mprotect(region->pages, PAGES * PAGE, PROT_READ) == 0, "mprotect");
	for (unsigned long page = 0; page < PAGES; page++)
		check_page(kind, page);
	if (region->protection == PROT_NONE)
		need(mprotect(region->pages, PAGES * PAGE, PROT_NONE) == 0, "mprotect");
}

static int fill(int fd, int kind)
{
	for (unsigned long page = 0; page < PAGES; page++) {
		uint64_t content[WORDS];
		for (unsigned long i = 0; i < WORDS; i++)
			content[i] = word(kind, page, 0, i);
		need(write(fd, content, PAGE) == (ssize_t)PAGE, "write");
	}
	return fd;
}

static int new_file(const char *directory, const char *name)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof path, "%s/%s", directory, name);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
	need(fd >= 0, path);
	return fd;
}

static int sized(int fd)
{
	need(ftruncate(fd, (off_t)(PAGES * PAGE)) == 0, "ftruncate");
	return fd;
}

static void private_region(int kind, int protection)
{
	regions[kind] = (struct region){ .fd = -1, .protection = protection };
	regions[kind].pages = regions[kind].writable = map(PAGES, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static void mapped(int kind, int flags, int fd, int keep)
{
	regions[kind] = (struct region){ .fd = keep ? fd : -1, .protection = PROT_READ | PROT_WRITE };
	regions[kind].pages = map(PAGES, PROT_READ | PROT_WRITE, flags, fd);
	/* A second mapping of what is shared. */
	regions[kind].writable = flags & MAP_SHARED && fd >= 0 ? map(PAGES, PROT_READ | PROT_WRITE, flags, fd)
							       : regions[kind].pages;
	if (fd >= 0 && !keep)
		close(fd);
}

/* Pages that may not be touched, without a mapping of their own (Linux 6.13). */
#define GUARD_INSTALL 102
#define GUARD_EVERY 16

static char *guarded;

static void guard(void)
{
	guarded = map(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memset(guarded, 1, PAGES * PAGE);
	for (unsigned long page = 0; page < PAGES; page += GUARD_EVERY)
		if (madvise(guarded + page * PAGE, PAGE, GUARD_INSTALL) != 0) {
			/* An older kernel. */
			guarded = NULL;
			return;
		}
}

static void check_guards(void)
{
	char byte = 2;
	int fds[2];

	if (!guarded)
		return;
	need(pipe(fds) == 0, "pipe");
	for (unsigned long page = 0; page < PAGES; page++) {
		ssize_t written = write(fds[1], guarded + page * PAGE, 1);
		if (page % GUARD_EVERY == 0) {
			need(written < 0 && errno == EFAULT, "a guard page");
			continue;
		}
		need(written == 1 && read(fds[0], &byte, 1) == 1, "the pipe");
		if (byte != 1)
			fail("between guards", page, (uint64_t)byte, 1);
	}
	close(fds[0]);
	close(fds[1]);
}

/* Memory behind which another mapping is moved in every step, so that the kernel joins the two. */
static void neighbour(void)
{
	char *place;

	private_region(NEIGHBOUR, PROT_READ | PROT_WRITE);
	need(munmap(regions[NEIGHBOUR].pages, PAGES * PAGE) == 0, "munmap");
	place = map(2 * PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	regions[NEIGHBOUR].pages = regions[NEIGHBOUR].writable = (uint64_t *)place;
}

static void move_neighbour(void)
{
	char *behind = (char *)(regions[NEIGHBOUR].pages + PAGES * WORDS);
	/* Made in the step before, so that whoever tracks mappings has seen it. */
	static char *other;

	need(munmap(behind, PAGES * PAGE) == 0, "munmap");
	if (other) {
		need(mremap(other, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, behind) == behind, "mremap");
		need(munmap(other - PAGES * PAGE, 3 * PAGES * PAGE) == 0, "munmap");
	}
	/* Never touched and apart from all others: such a mapping can be joined wherever it is moved. */
	other = (char *)map(3 * PAGES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1) + PAGES * PAGE;
	need(mprotect(other, PAGES * PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect");
}

static uint64_t *sealed_pages;

/* Shared memory that nobody can write any more. */
static void seal(void)
{
	int fd = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	need(fd >= 0, "memfd_create");
	fill(fd, KINDS);
	need(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0, "F_ADD_SEALS");
	sealed_pages = map(PAGES, PROT_READ, MAP_SHARED, fd);
	/* The descriptor stays open. */
	need(write(fd, "x", 1) < 0 && errno == EPERM, "the seal");
}

static void check_sealed(void)
{
	for (unsigned long page = 0; page < PAGES; page++)
		if (sealed_pages[page * WORDS + 9] != word(KINDS, page, 0, 9))
			fail("sealed", page, sealed_pages[page * WORDS + 9], word(KINDS, page, 0, 9));
	need(mprotect(sealed_pages, PAGE, PROT_READ | PROT_WRITE) < 0 && errno == EACCES, "the seal of the mapping");
}

/* Blocks that lose all of their pages at once, and with them the page table. */
#define TABLE (2UL << 20)
#define TABLES 4UL

static uint64_t *tables;
static uint64_t table_generations[TABLES];

static void empty_tables(void)
{
	char *place = map((TABLES + 1) * TABLE / PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	tables = (uint64_t *)(((uintptr_t)place + TABLE - 1) / TABLE * TABLE);
	need(madvise(tables, TABLES * TABLE, MADV_NOHUGEPAGE) == 0, "MADV_NOHUGEPAGE");
}

/* Odd generations are there, even ones are not. */
static void change_table(unsigned long table)
{
	uint64_t *place = tables + table * TABLE / 8;
	uint64_t generation = ++table_generations[table];

	if (generation % 2 == 0) {
		need(madvise(place, TABLE, MADV_DONTNEED) == 0, "MADV_DONTNEED");
		return;
	}
	for (unsigned long page = 0; page < TABLE / PAGE; page++)
		place[page * WORDS] = word(KINDS + 1, page, generation, 0);
}

static void check_tables(void)
{
	for (unsigned long table = 0; table < TABLES; table++)
		for (unsigned long page = 0; page < TABLE / PAGE; page++) {
			uint64_t generation = table_generations[table];
			uint64_t got = tables[table * TABLE / 8 + page * WORDS];
			uint64_t expected = generation % 2 ? word(KINDS + 1, page, generation, 0) : 0;

			if (got != expected)
				fail("of a dropped page table", page, got, expected);
		}
}

static void set_up(const char *directory)
{
	char inner[4096];
	int fd;

	mapped(SHARED_ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	mapped(MEMFD, MAP_SHARED, sized(memfd_create("visible", MFD_CLOEXEC)), 1);
	mapped(MEMFD_PRIVATE, MAP_PRIVATE, fill(memfd_create("behind", MFD_CLOEXEC), MEMFD_PRIVATE), 0);
	fd = sized(new_file(directory, "unlinked"));
	mapped(UNLINKED, MAP_SHARED, fd, 0);
	snprintf(inner, sizeof inner, "%s/unlinked", directory);
	need(unlink(inner) == 0, "unlink");
	snprintf(inner, sizeof inner, "%s/hsperfdata_test", directory);
	mkdir(inner, 0755);
	mapped(CARRIED, MAP_SHARED, sized(new_file(directory, "hsperfdata_test/1")), 0);
	fd = fill(new_file(directory, "file"), FILE_PRIVATE);
	mapped(FILE_PRIVATE, MAP_PRIVATE, fd, 0);
	private_region(READ_ONLY, PROT_READ);
	private_region(NO_ACCESS, PROT_NONE);
	private_region(LOCKED, PROT_READ | PROT_WRITE);
	need(mlock(regions[LOCKED].pages, PAGES * PAGE) == 0, "mlock");
	private_region(ADVISED, PROT_READ | PROT_WRITE);
	need(madvise(regions[ADVISED].pages, PAGES * PAGE, MADV_DONTFORK) == 0, "MADV_DONTFORK");
	need(madvise(regions[ADVISED].pages, PAGES * PAGE, MADV_DONTDUMP) == 0, "MADV_DONTDUMP");
	private_region(NAMED, PROT_READ | PROT_WRITE);
	neighbour();
	seal();
	guard();
	empty_tables();
}

/* Makes a page anew as nobody had ever written it. */
static void forget_page(int kind, unsigned long page)
{
	struct region *region = &regions[kind];

	if (kind == LOCKED)
		return;
	need(madvise(region->pages + page * WORDS, PAGE, MADV_DONTNEED) == 0, "MADV_DONTNEED");
	if (kind != SHARED_ANONYMOUS && kind != MEMFD && kind != UNLINKED && kind != CARRIED)
		region->generations[page] = 0;
}

int main(int argc, char **argv)
{
	const char *directory = argc > 1 ? argv[1] : "/tmp";
	struct timespec step = { 0, 100000000L };

	set_up(directory);
	for (long steps = 1;; steps++) {
		for (int kind = 0; kind < KINDS; kind++) {
			for (int i = 0; i < 4; i++)
				write_page(kind, (unsigned long)rand_r(&seed) % PAGES);
			forget_page(kind, (unsigned long)rand_r(&seed) % PAGES);
			/* Not in every step: what was dropped may still be gone when somebody looks from outside. */
			if (steps % CHECK_EVERY == 0)
				check(kind);
		}
		change_table((unsigned long)rand_r(&seed) % TABLES);
		if (steps % CHECK_EVERY == 0)
			check_tables();
		move_neighbour();
		check_sealed();
		check_guards();
		printf("memory %ld ok\n", steps);
		fflush(stdout);
		nanosleep(&step, NULL);
	}
}
