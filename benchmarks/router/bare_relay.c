/* The floor of overhead.py: a relay that passes bytes on between sockets and looks at none of them.

   bare_relay PORT ENGINE_PORT...

   A client's connection is tied to one engine, the next to the next. One thread, level-triggered epoll, one read and
   one write per chunk, blocking sockets with TCP_NODELAY: what is left is the kernel's work, which every router has. */

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST_FILES = 65536, MOST_EVENTS = 1024, BUFFER_BYTES = 262144 };

static int other_end[MOST_FILES]; /* of each connection; 0 for none */
static char buffer[BUFFER_BYTES];
static int epoll;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static struct sockaddr_in loopback(const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void watch(int file) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = file};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, file, &event)) fail("epoll_ctl");
}

static void pair(int client, const char *engine_port) {
    int engine = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in address = loopback(engine_port);
    if (connect(engine, (struct sockaddr *)&address, sizeof address)) fail("connect");
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(engine, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    other_end[client] = engine;
    other_end[engine] = client;
    watch(client);
    watch(engine);
}

static void pass_on(int file) {
    int other = other_end[file];
    ssize_t count;
    if (!other) return; /* closed together with its other end, earlier in this round */
    count = read(file, buffer, sizeof buffer);
    if (count > 0 && write(other, buffer, count) == count) return;
    other_end[file] = other_end[other] = 0;
    close(file);
    close(other);
}

int main(int argc, char **argv) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1, next = 0;
    struct epoll_event events[MOST_EVENTS];
    if (argc < 3) return fprintf(stderr, "usage: bare_relay PORT ENGINE_PORT...\n"), 2;
    struct sockaddr_in address = loopback(argv[1]);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) fail(argv[1]);
    epoll = epoll_create1(0);
    watch(listener);
    for (;;) {
        int count = epoll_wait(epoll, events, MOST_EVENTS, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == listener)
                pair(accept(listener, NULL, NULL), argv[2 + next++ % (argc - 2)]);
            else
                pass_on(events[i].data.fd);
        }
    }
}
