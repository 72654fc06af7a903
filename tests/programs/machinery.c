/*
 * machinery: one thread for each mechanism that a move must carry, each checking what it gets. Every part counts
 * its successes; the main thread reports five times a second and fails if a part has stood still for ten seconds.
 *
 * All threads but the main one block all signals, so that an EINTR there can only be a trace of the move.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000L
#define STANDSTILL_S 10

enum part {
	PRODUCER, CONSUMER_1, CONSUMER_2, PIPE, PAIR, DATAGRAMS, EVENTS, FUTEX, DEADLINE, FLOAT, ROBUST, QUEUED, OPEN_FILE,
	ALARM, USER_SIGNAL, POSIX_TIMER, EVENTFD, TIMERFD, SIGNALFD, PARTS
};

static const char *const names[PARTS] = {
	"producer", "consumer1", "consumer2", "pipe", "pair", "datagrams", "events", "futex", "deadline", "float", "robust",
	"queued", "file", "alarm", "user", "posix", "eventfd", "timerfd", "signalfd",
};

static volatile long counts[PARTS];

/* Async-signal-safe: also called by the handlers. */
static void fail(const char *format, ...)
{
	char line[256] = "BAD machinery: ";
	size_t used = strlen(line);
	va_list arguments;

	va_start(arguments, format);
	used += (size_t)vsnprintf(line + used, sizeof(line) - used - 1, format, arguments);
	va_end(arguments);
	line[used++] = '\n';
	if (write(STDOUT_FILENO, line, used) < 0)
		_exit(2);
	_exit(1);
}

static void need(int ok, const char *what)
{
	if (!ok)
		fail("%s (%s)", what, strerror(errno));
}

static void rest(long ns)
{
	struct timespec duration = {0, ns};
	need(nanosleep(&duration, NULL) == 0, "nanosleep");
}

static int64_t now_ns(clockid_t clock)
{
	struct timespec now;
	need(clock_gettime(clock, &now) == 0, "clock_gettime");
	return now.tv_sec * 1000 * MS + now.tv_nsec;
}

/* ---- Locks, condition variables, thread-local memory ---- */

static pthread_mutex_t work_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work_there = PTHREAD_COND_INITIALIZER;
static long work;
static __thread long own;

static void *produce(void *argument)
{
	(void)argument;
	for (;; counts[PRODUCER]++) {
		pthread_mutex_lock(&work_lock);
		work += 2;
		pthread_cond_broadcast(&work_there);
		pthread_mutex_unlock(&work_lock);
		rest(20 * MS);
	}
	return NULL;
}

static void *consume(void *argument)
{
	long part = (long)argument;
	long tid = syscall(SYS_gettid);

	own = part;
	for (;; counts[part]++) {
		pthread_mutex_lock(&work_lock);
		while (!work)
			need(pthread_cond_wait(&work_there, &work_lock) == 0, "pthread_cond_wait");
		work--;
		pthread_mutex_unlock(&work_lock);
		if (own != part)
			fail("thread-local memory holds %ld instead of %ld", own, part);
		need(syscall(SYS_gettid) == tid, "the TID is another");
		need(sched_getcpu() >= 0, "sched_getcpu");
		/* So that each gets some. */
		sched_yield();
	}
	return NULL;
}

/* A thread that dies with a robust mutex locked leaves it to the next one (get_robust_list(2)). */
static pthread_mutex_t robust_lock;

static void *die_with_lock(void *argument)
{
	(void)argument;
	need(pthread_mutex_lock(&robust_lock) == 0, "lock of a consistent robust mutex");
	rest(30 * MS);
	return NULL;
}

static void *inherit(void *argument)
{
	pthread_mutexattr_t attributes;

	(void)argument;
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&robust_lock, &attributes);
	for (;; counts[ROBUST]++) {
		pthread_t thread;
		need(pthread_create(&thread, NULL, die_with_lock, NULL) == 0, "pthread_create");
		need(pthread_join(thread, NULL) == 0, "pthread_join");
		need(pthread_mutex_lock(&robust_lock) == EOWNERDEAD, "a dead owner was not noticed");
		pthread_mutex_consistent(&robust_lock);
		pthread_mutex_unlock(&robust_lock);
	}
	return NULL;
}

/* ---- Streams of numbers through kernel buffers that are never empty ---- */

#define IN_FLIGHT 100

struct stream {
	int in, out;
	enum part part;
};

static struct stream pipe_stream, pair_stream, datagram_stream;

/* Keeps IN_FLIGHT numbers on their way and checks that they come out in order. */
static void *flow(void *argument)
{
	struct stream *stream = argument;
	uint32_t sent = 0, expected = 0, got;
	/* A datagram takes far more room than its content, and few fit into a queue (net.unix.max_dgram_qlen). */
	uint32_t ahead = stream->part == DATAGRAMS ? 5 : IN_FLIGHT;

	for (;; counts[stream->part]++) {
		while (sent - expected < ahead) {
			need(write(stream->in, &sent, sizeof(sent)) == sizeof(sent), names[stream->part]);
			sent++;
		}
		need(read(stream->out, &got, sizeof(got)) == sizeof(got), names[stream->part]);
		if (got != expected)
			fail("%s gave %u instead of %u", names[stream->part], got, expected);
		expected++;
		rest(2 * MS);
	}
	return NULL;
}

/* ---- epoll, eventfd, timerfd, signalfd ---- */

#define TICK_NS (40 * MS)
static int event_fd, timer_fd, signal_fd, epoll_fd;
static int64_t ticking_since;

static void watch(int fd, enum part part)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0x5eed00000000ULL + part};
	need(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
}

static void take_ticks(void)
{
	uint64_t ticks;

	need(read(timer_fd, &ticks, sizeof(ticks)) == sizeof(ticks), "read of the timerfd");
	counts[TIMERFD] += (long)ticks;
	if (counts[TIMERFD] > (now_ns(CLOCK_MONOTONIC) - ticking_since) / TICK_NS)
		fail("the timerfd has ticked %ld times, too often", counts[TIMERFD]);
}

static void take_signal(void)
{
	struct signalfd_siginfo info;

	need(read(signal_fd, &info, sizeof(info)) == sizeof(info), "read of the signalfd");
	need(info.ssi_signo == SIGUSR2 && info.ssi_pid == (uint32_t)getpid(), "the signalfd gave another signal");
	counts[SIGNALFD]++;
}

static void take_event(void)
{
	uint64_t value;

	need(read(event_fd, &value, sizeof(value)) == sizeof(value), "read of the eventfd");
	counts[EVENTFD] += (long)value;
}

static void *poll_events(void *argument)
{
	(void)argument;
	for (;; counts[EVENTS]++) {
		struct epoll_event events[4];
		uint64_t one = 1;
		need(write(event_fd, &one, sizeof(one)) == sizeof(one), "write to the eventfd");
		int ready = epoll_wait(epoll_fd, events, 4, 1000);
		need(ready > 0, "epoll_wait");
		for (int i = 0; i < ready; i++) {
			switch (events[i].data.u64 - 0x5eed00000000ULL) {
			case EVENTFD: take_event(); break;
			case TIMERFD: take_ticks(); break;
			case SIGNALFD: take_signal(); break;
			default: fail("epoll gave %llx", (unsigned long long)events[i].data.u64);
			}
		}
		need(poll(NULL, 0, 10) == 0, "poll");
	}
	return NULL;
}

/* ---- Waiting ---- */

static void *wait_on_futex(void *argument)
{
	int word = 0;

	(void)argument;
	for (;; counts[FUTEX]++) {
		struct timespec timeout = {0, 30 * MS};
		int64_t before = now_ns(CLOCK_MONOTONIC);
		long answer = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &timeout, NULL, 0);
		need(answer < 0 && errno == ETIMEDOUT, "a futex with a timeout");
		need(now_ns(CLOCK_MONOTONIC) - before >= timeout.tv_nsec, "a futex came back too early");
	}
	return NULL;
}

static void *wait_for_deadlines(void *argument)
{
	pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	pthread_condattr_t attributes;
	pthread_cond_t never;

	(void)argument;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&never, &attributes);
	for (;; counts[DEADLINE]++) {
		int64_t deadline = now_ns(CLOCK_MONOTONIC) + 50 * MS;
		struct timespec at = {deadline / (1000 * MS), deadline % (1000 * MS)};
		pthread_mutex_lock(&lock);
		int answer = pthread_cond_timedwait(&never, &lock, &at);
		pthread_mutex_unlock(&lock);
		need(answer == ETIMEDOUT || answer == 0, "pthread_cond_timedwait");
		need(answer == 0 || now_ns(CLOCK_MONOTONIC) >= deadline, "a deadline came too early");
		at.tv_sec = 0;
		at.tv_nsec = 20 * MS;
		need(clock_nanosleep(CLOCK_BOOTTIME, 0, &at, NULL) == 0, "clock_nanosleep");
	}
	return NULL;
}

/* ---- Computing ---- */

static void *compute(void *argument)
{
	double first = 0;

	(void)argument;
	for (;; counts[FLOAT]++) {
		double sum = 0;
		for (int i = 1; i < 200000; i++)
			sum += 1.0 / i * (double)(i % 7);
		if (first == 0)
			first = sum;
		if (sum != first)
			fail("floating point gave %a instead of %a", sum, first);
		rest(3 * MS);
	}
	return NULL;
}

/* ---- Queued signals: real-time signals wait in order, with their values (signal(7)) ---- */

#define QUEUED_SIGNAL (SIGRTMIN + 4)

static void *take_queued(void *argument)
{
	sigset_t awaited;
	int sent = 0, expected = 0;

	(void)argument;
	sigemptyset(&awaited);
	sigaddset(&awaited, QUEUED_SIGNAL);
	for (;; counts[QUEUED]++) {
		siginfo_t info;
		while (sent < expected + 20) {
			union sigval value = {.sival_int = sent++};
			need(sigqueue(getpid(), QUEUED_SIGNAL, value) == 0, "sigqueue");
		}
		need(sigwaitinfo(&awaited, &info) == QUEUED_SIGNAL, "sigwaitinfo");
		if (info.si_code != SI_QUEUE || info.si_value.sival_int != expected)
			fail("a queued signal has the value %d instead of %d", info.si_value.sival_int, expected);
		expected++;
		rest(5 * MS);
	}
	return NULL;
}

/* ---- A file: our own program, read piece by piece ---- */

static void *read_file(void *argument)
{
	int fd = open("/proc/self/exe", O_RDONLY);
	off_t offset = 0;

	(void)argument;
	need(fd >= 0, "open");
	for (;; counts[OPEN_FILE]++) {
		char piece[100], same[100];
		ssize_t length = read(fd, piece, sizeof(piece));
		need(length >= 0, "read of a file");
		if (pread(fd, same, sizeof(same), offset) != length || memcmp(piece, same, (size_t)length))
			fail("the file is not read on at offset %ld", (long)offset);
		offset = length ? offset + length : lseek(fd, 0, SEEK_SET);
		rest(5 * MS);
	}
	return NULL;
}

/* ---- Signals that interrupt the main thread ---- */

#define TIMER_SIGNAL (SIGRTMIN + 3)
#define TIMER_VALUE 77

static void on_signal(int signal, siginfo_t *info, void *context)
{
	stack_t stack;

	(void)context;
	if (signal == SIGALRM) {
		need(sigaltstack(NULL, &stack) == 0 && stack.ss_flags & SS_ONSTACK, "not on the alternate stack");
		counts[ALARM]++;
	} else if (signal == SIGUSR1) {
		counts[USER_SIGNAL]++;
	} else {
		need(info->si_value.sival_int == TIMER_VALUE, "a timer's signal has another value");
		counts[POSIX_TIMER]++;
	}
}

static void set_up_signals(void)
{
	static char stack_memory[65536];
	stack_t stack = {.ss_sp = stack_memory, .ss_size = sizeof(stack_memory)};
	struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
	sigset_t blocked;

	need(sigaltstack(&stack, NULL) == 0, "sigaltstack");
	need(sigaction(SIGALRM, &action, NULL) == 0, "sigaction");
	need(sigaction(SIGUSR1, &action, NULL) == 0, "sigaction");
	need(sigaction(TIMER_SIGNAL, &action, NULL) == 0, "sigaction");
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR2);
	sigaddset(&blocked, QUEUED_SIGNAL);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	sigdelset(&blocked, QUEUED_SIGNAL);
	signal_fd = signalfd(-1, &blocked, SFD_NONBLOCK);
	need(signal_fd >= 0, "signalfd");
}

static void set_up_timers(void)
{
	struct itimerval alarm_every = {{0, 70000}, {0, 70000}};
	struct itimerspec every = {{0, 60 * MS}, {0, 60 * MS}};
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = TIMER_SIGNAL, .sigev_value.sival_int = TIMER_VALUE};
	timer_t deleted, idle, timer;

	need(setitimer(ITIMER_REAL, &alarm_every, NULL) == 0, "setitimer");
	/* A hole in the numbering, and a timer that is not armed. */
	need(timer_create(CLOCK_MONOTONIC, &event, &deleted) == 0, "timer_create");
	need(timer_create(CLOCK_REALTIME, &event, &idle) == 0, "timer_create");
	need(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "timer_create");
	need(timer_delete(deleted) == 0, "timer_delete");
	need(timer_settime(timer, 0, &every, NULL) == 0, "timer_settime");
}

static void set_up_descriptors(void)
{
	struct itimerspec tick = {{0, TICK_NS}, {0, TICK_NS}};
	int ends[2];

	need(pipe(ends) == 0, "pipe");
	pipe_stream = (struct stream){ends[1], ends[0], PIPE};
	need(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
	pair_stream = (struct stream){ends[1], ends[0], PAIR};
	need(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0, "socketpair");
	datagram_stream = (struct stream){ends[1], ends[0], DATAGRAMS};

	event_fd = eventfd(0, EFD_NONBLOCK);
	timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	need(event_fd >= 0 && timer_fd >= 0 && epoll_fd >= 0, "a descriptor");
	watch(event_fd, EVENTFD);
	watch(timer_fd, TIMERFD);
	watch(signal_fd, SIGNALFD);
	ticking_since = now_ns(CLOCK_MONOTONIC);
	need(timerfd_settime(timer_fd, 0, &tick, NULL) == 0, "timerfd_settime");
}

/* Blocks all signals while it starts the threads, which inherit that. */
static void start_threads(void)
{
	static const struct {
		void *(*run)(void *);
		void *argument;
	} threads[] = {
		{produce, NULL}, {consume, (void *)CONSUMER_1}, {consume, (void *)CONSUMER_2}, {inherit, NULL},
		{flow, &pipe_stream}, {flow, &pair_stream}, {flow, &datagram_stream}, {poll_events, NULL},
		{wait_on_futex, NULL}, {wait_for_deadlines, NULL}, {compute, NULL}, {take_queued, NULL}, {read_file, NULL},
	};
	sigset_t all, before;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	for (size_t i = 0; i < sizeof(threads) / sizeof(threads[0]); i++) {
		pthread_t thread;
		need(pthread_create(&thread, NULL, threads[i].run, threads[i].argument) == 0, "pthread_create");
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* ---- Memory of several kinds, with content that must stay ---- */

static struct {
	char *no_access, *shared, *object, *file;
	int object_fd;
} memory;

static void set_up_memory(void)
{
	memory.no_access = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memory.shared = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	memory.object_fd = memfd_create("machinery", MFD_CLOEXEC);
	need(ftruncate(memory.object_fd, 16384) == 0, "ftruncate");
	memory.object = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_SHARED, memory.object_fd, 0);
	int fd = open("/proc/self/exe", O_RDONLY);
	memory.file = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	close(fd);
	need(memory.no_access != MAP_FAILED && memory.shared != MAP_FAILED && memory.object != MAP_FAILED &&
	     memory.file != MAP_FAILED, "mmap");
	strcpy(memory.no_access, "behind a wall");
	need(mprotect(memory.no_access, 4096, PROT_NONE) == 0, "mprotect");
	strcpy(memory.file + 4096, "private");
}

static void check_memory(long n)
{
	char text[32];

	need(mprotect(memory.no_access, 4096, PROT_READ) == 0, "mprotect");
	need(strcmp(memory.no_access, "behind a wall") == 0, "memory without access has changed");
	need(mprotect(memory.no_access, 4096, PROT_NONE) == 0, "mprotect");
	need(memcmp(memory.file, "\177ELF", 4) == 0, "an unmodified page of a private file mapping has changed");
	need(strcmp(memory.file + 4096, "private") == 0, "a modified page of a private file mapping has changed");

	/* What the step before wrote is still there; then something new. */
	snprintf(text, sizeof(text), "step %ld", n - 1);
	if (n > 1) {
		need(strcmp(memory.shared + 4096, text) == 0, "shared memory has changed");
		need(strcmp(memory.object + 8192, text) == 0, "a memfd has changed");
	}
	snprintf(text, sizeof(text), "step %ld", n);
	strcpy(memory.shared + 4096, text);
	need(pwrite(memory.object_fd, text, strlen(text) + 1, 8192) > 0, "pwrite to a memfd");
}

/* Fails when a part has not counted on for too long. */
static void check_progress(void)
{
	static long before[PARTS];
	static int64_t since[PARTS];
	int64_t now = now_ns(CLOCK_MONOTONIC);

	for (int part = 0; part < PARTS; part++) {
		if (counts[part] != before[part] || !since[part]) {
			before[part] = counts[part];
			since[part] = now;
		} else if (now - since[part] > STANDSTILL_S * 1000 * MS) {
			fail("%s stands still at %ld", names[part], counts[part]);
		}
	}
}

int main(void)
{
	/* The log by another number, too. */
	int log = dup(STDOUT_FILENO);

	set_up_signals();
	set_up_descriptors();
	set_up_memory();
	start_threads();
	set_up_timers();
	for (long n = 1;; n++) {
		struct timespec left = {0, 200 * MS};
		while (nanosleep(&left, &left))
			need(errno == EINTR, "nanosleep");
		kill(getpid(), SIGUSR2);
		raise(SIGUSR1);
		check_memory(n);
		check_progress();
		char line[512];
		int used = snprintf(line, sizeof(line), "machinery %ld ok", n);
		for (int part = 0; part < PARTS; part++)
			used += snprintf(line + used, sizeof(line) - (size_t)used, " %s %ld", names[part], counts[part]);
		line[used++] = '\n';
		need(write(log, line, (size_t)used) == used, "write to the log");
	}
}
