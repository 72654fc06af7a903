/*
 * unsupported KIND: holds one thing that cannot move (yet), and counts fast, with the longest gap between two counts in
 * milliseconds, so that the slightest pause would be seen.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/netlink.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what)
{
	printf("BAD unsupported: %s\n", what);
	perror("BAD unsupported");
	exit(1);
}

static int hold_io_uring(void)
{
	struct io_uring_params parameters;
	memset(&parameters, 0, sizeof(parameters));
	return (int)syscall(SYS_io_uring_setup, 4, &parameters);
}

static int hold_inotify(void)
{
	int fd = inotify_init();
	return fd < 0 ? fd : inotify_add_watch(fd, "/tmp", IN_CREATE);
}

static int hold_tty(void)
{
	return posix_openpt(O_RDWR | O_NOCTTY);
}

static int hold_deleted_file(void)
{
	int fd = open("/tmp/whimbrel-deleted", O_RDWR | O_CREAT, 0600);
	return fd < 0 ? fd : unlink("/tmp/whimbrel-deleted");
}

static int hold_sysv_shm(void)
{
	int id = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
	void *memory = id < 0 ? (void *)-1 : shmat(id, NULL, 0);
	if (memory == (void *)-1)
		return -1;
	/* Goes with its last user. */
	return shmctl(id, IPC_RMID, NULL);
}

static int hold_file_lock(void)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	int fd = open("/tmp/whimbrel-locked", O_RDWR | O_CREAT, 0600);
	return fd < 0 ? fd : fcntl(fd, F_SETLK, &lock);
}

static int hold_raw_socket(void)
{
	return socket(AF_INET, SOCK_RAW, 1);
}

static int hold_netlink(void)
{
	return socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
}

/* Ends with its parent. */
static void wait_for_ever(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		pause();
}

static int hold_child(void)
{
	pid_t child = fork();
	if (child == 0)
		wait_for_ever();
	return child;
}

static int hold_being_traced(void)
{
	pid_t traced = getpid();
	int ready[2];
	char byte;
	if (pipe(ready))
		return -1;
	pid_t tracer = fork();
	if (tracer == 0) {
		close(ready[0]);
		if (ptrace(PTRACE_SEIZE, traced, 0, 0) || write(ready[1], "x", 1) != 1)
			_exit(1);
		close(ready[1]);
		wait_for_ever();
	}
	close(ready[1]);
	int answer = read(ready[0], &byte, 1) == 1 ? 0 : -1;
	close(ready[0]);
	return answer;
}

static const struct {
	const char *name;
	int (*hold)(void);
} kinds[] = {
	{"io_uring", hold_io_uring},
	{"inotify", hold_inotify},
	{"tty", hold_tty},
	{"deleted-file", hold_deleted_file},
	{"sysv-shm", hold_sysv_shm},
	{"file-lock", hold_file_lock},
	{"raw-socket", hold_raw_socket},
	{"netlink", hold_netlink},
	{"child", hold_child},
	{"traced", hold_being_traced},
};

static long milliseconds(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
	size_t kind = 0, count = sizeof(kinds) / sizeof(kinds[0]);
	while (kind < count && (argc < 2 || strcmp(argv[1], kinds[kind].name)))
		kind++;
	if (kind == count)
		fail("no such kind");
	if (kinds[kind].hold() < 0)
		fail(kinds[kind].name);
	long before = milliseconds(), gap = 0;
	for (long n = 1;; n++) {
		long now = milliseconds();
		if (now - before > gap)
			gap = now - before;
		before = now;
		if (n % 50 == 0) {
			printf("unsupported %ld ok gap_ms %ld\n", n / 50, gap);
			fflush(stdout);
		}
		usleep(1000);
	}
}
