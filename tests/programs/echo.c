/*
 * echo PORT: a TCP server on all addresses, IPv4 and IPv6, one thread for each connection.
 * Answers each line with its number on this connection, counted from 0, a space, and the line.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void fail(const char *what)
{
	printf("BAD echo: %s\n", what);
	perror("BAD echo");
	exit(1);
}

static void *serve(void *argument)
{
	int fd = (int)(long)argument;
	FILE *in = fdopen(fd, "r");
	FILE *out = fdopen(dup(fd), "w");
	char *line = NULL;
	size_t size = 0;

	if (!in || !out)
		fail("fdopen");
	for (long n = 0; getline(&line, &size, in) > 0; n++) {
		if (fprintf(out, "%ld %s", n, line) < 0 || fflush(out))
			break;
	}
	free(line);
	fclose(in);
	fclose(out);
	return NULL;
}

static void *count(void *argument)
{
	(void)argument;
	for (long n = 1;; n++) {
		printf("echo %ld ok\n", n);
		fflush(stdout);
		usleep(200000);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	int one = 1;
	int listener = socket(AF_INET6, SOCK_STREAM, 0);
	struct sockaddr_in6 address = {
		.sin6_family = AF_INET6,
		.sin6_port = htons(argc > 1 ? (in_port_t)atoi(argv[1]) : 7000),
	};
	if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)))
		fail("socket");
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 128))
		fail("bind");
	pthread_t thread;
	if (pthread_create(&thread, NULL, count, NULL))
		fail("pthread_create");
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		if (fd < 0)
			fail("accept");
		if (pthread_create(&thread, NULL, serve, (void *)(long)fd))
			fail("pthread_create");
		pthread_detach(thread);
	}
}
