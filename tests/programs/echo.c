/*
 * echo PORT: a TCP server on all addresses, IPv4 and IPv6, one thread for each connection.
 * Answers each line with its number on this connection, counted from 0, a space, and the line.
 * A datagram to the same port (UDP) is sent back.
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

static void *send_back(void *argument)
{
	int fd = (int)(long)argument;
	char text[2000];

	for (;;) {
		struct sockaddr_in6 from;
		socklen_t length = sizeof(from);
		ssize_t got = recvfrom(fd, text, sizeof(text), 0, (struct sockaddr *)&from, &length);

		if (got >= 0)
			sendto(fd, text, (size_t)got, 0, (struct sockaddr *)&from, length);
	}
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
	int datagrams = socket(AF_INET6, SOCK_DGRAM, 0);
	struct sockaddr_in6 address = {
		.sin6_family = AF_INET6,
		.sin6_port = htons(argc > 1 ? (in_port_t)atoi(argv[1]) : 7000),
	};
	if (listener < 0 || datagrams < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)))
		fail("socket");
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 128))
		fail("bind");
	if (bind(datagrams, (struct sockaddr *)&address, sizeof(address)))
		fail("bind UDP");
	pthread_t thread;
	if (pthread_create(&thread, NULL, count, NULL))
		fail("pthread_create");
	if (pthread_create(&thread, NULL, send_back, (void *)(long)datagrams))
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
