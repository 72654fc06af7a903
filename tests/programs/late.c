/*
 * late: has memory that nobody touches but the kernel: each step writes a page into a pipe and reads it from there into
 * another page, without looking at either; a child does the same. Only then they are compared. Ten lines a second.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 4096

static unsigned char *from, *to;

static void fail(const char *what, long page)
{
	printf("BAD late: %s, page %ld\n", what, page);
	fflush(stdout);
	_exit(1);
}

static unsigned char *map(void)
{
	void *start = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (start == MAP_FAILED)
		fail("mmap", 0);
	return start;
}

/* Each page begins with its number; the rest follows from it. */
static void fill(unsigned char *page, long number)
{
	memset(page, (int)(number % 251) + 1, PAGE);
	memcpy(page, &number, sizeof(number));
}

static void check(const unsigned char *page, long number)
{
	static unsigned char expected[PAGE];

	fill(expected, number);
	if (memcmp(page, expected, PAGE))
		fail("another content", number);
}

static void copy(const int *ends, long number)
{
	if (write(ends[1], from + number * PAGE, PAGE) != PAGE)
		fail("write", number);
	/* Half of it: the other half must stay. */
	if (read(ends[0], to + number * PAGE, PAGE / 2) != PAGE / 2)
		fail("read", number);
	if (read(ends[0], to + number * PAGE + PAGE / 2, PAGE / 2) != PAGE / 2)
		fail("read", number);
	check(to + number * PAGE, number);
	check(from + number * PAGE, number);
}

int main(void)
{
	int ends[2];

	from = map();
	to = map();
	for (long i = 0; i < PAGES; i++) {
		fill(from + i * PAGE, i);
		fill(to + i * PAGE, i + 1);
	}
	if (pipe(ends))
		fail("pipe", 0);
	for (long step = 0;; step++) {
		printf("late %ld ok\n", step);
		fflush(stdout);
		usleep(100000);
		for (int i = 0; i < 8; i++)
			copy(ends, (step * 8 + i) * 37 % PAGES);
		pid_t child = fork();
		if (child == 0) {
			copy(ends, (step * 8 + 7) * 41 % PAGES);
			_exit(0);
		}
		int status;
		if (child < 0 || waitpid(child, &status, 0) != child || status)
			fail("a child failed", step);
	}
}
