/* Unpacks a tar archive from standard input into the current directory: v7, ustar, GNU long names, pax paths.
 * busybox's tar refuses v7 archives, which most GNU releases are. Archives are checked by hash before they get here; names that leave
 * the directory are refused all the same. Device nodes and times are ignored: sources have one time, set by the builder. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char block[512], long_name[8192], long_link[8192];

static void fail(const char *what, const char *name) {
    fprintf(stderr, "untar: %s: %s: %s\n", what, name, strerror(errno));
    exit(1);
}

static int read_block(void) {
    size_t got = fread(block, 1, sizeof block, stdin);
    if (got && got != sizeof block) { fputs("untar: truncated archive\n", stderr); exit(1); }
    return got != 0;
}

static unsigned long long number(const char *field, size_t length) {
    unsigned long long value = 0;
    if (field[0] & 0x80) {
        for (size_t i = 1; i < length; i++) value = value << 8 | (unsigned char)field[i];
        return value;
    }
    for (size_t i = 0; i < length && field[i]; i++)
        if (field[i] >= '0' && field[i] <= '7') value = value * 8 + (field[i] - '0');
    return value;
}

/* Reads the data of one entry into memory: long names and pax headers, which are small. */
static void slurp(char *to, size_t room, unsigned long long size) {
    size_t used = 0;
    if (size >= room) { fputs("untar: extended header too long\n", stderr); exit(1); }
    for (unsigned long long left = (size + 511) / 512; left; left--) {
        if (!read_block()) { fputs("untar: truncated archive\n", stderr); exit(1); }
        size_t take = size - used < 512 ? size - used : 512;
        memcpy(to + used, block, take);
        used += take;
    }
    to[used] = 0;
}

static void pax(char *text) {
    while (*text) {
        char *key = strchr(text, ' '), *end = text + strtoul(text, NULL, 10), *eq = key ? strchr(key, '=') : NULL;
        if (!eq || end <= text) return;
        end[-1] = 0;
        if (!strncmp(key + 1, "path=", 5)) snprintf(long_name, sizeof long_name, "%s", eq + 1);
        if (!strncmp(key + 1, "linkpath=", 9)) snprintf(long_link, sizeof long_link, "%s", eq + 1);
        text = end;
    }
}

static void parents(char *name) {
    for (char *slash = strchr(name + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (mkdir(name, 0755) && errno != EEXIST) fail("mkdir", name);
        *slash = '/';
    }
}

static void check(const char *name) {
    errno = EINVAL;
    if (!*name || *name == '/') fail("name", name);
    for (const char *part = name; part; part = strchr(part, '/') ? strchr(part, '/') + 1 : NULL)
        if (part[0] == '.' && part[1] == '.' && (part[2] == '/' || !part[2])) fail("name", name);
}

static void file(const char *name, unsigned long long size, unsigned mode) {
    unlink(name);
    int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, mode & 0111 ? 0755 : 0644);
    if (fd < 0) fail("create", name);
    while (size) {
        size_t take = size < 512 ? size : 512;
        if (!read_block()) { fputs("untar: truncated archive\n", stderr); exit(1); }
        if (write(fd, block, take) != (ssize_t)take) fail("write", name);
        size -= take;
    }
    close(fd);
}

int main(void) {
    while (read_block() && block[0]) {
        unsigned long long size = number(block + 124, 12);
        unsigned mode = number(block + 100, 8);
        char type = block[156], name[8192], link[8192];
        if (type == 'L') { slurp(long_name, sizeof long_name, size); continue; }
        if (type == 'K') { slurp(long_link, sizeof long_link, size); continue; }
        if (type == 'x' || type == 'g') {
            static char text[1 << 20];
            slurp(text, sizeof text, size);
            if (type == 'x') pax(text);
            continue;
        }
        int ustar = !memcmp(block + 257, "ustar\0", 6) && block[345];
        if (*long_name) snprintf(name, sizeof name, "%s", long_name);
        else snprintf(name, sizeof name, "%.*s%s%.100s", ustar ? 155 : 0, block + 345, ustar ? "/" : "", block);
        if (*long_link) snprintf(link, sizeof link, "%s", long_link);
        else snprintf(link, sizeof link, "%.100s", block + 157);
        *long_name = *long_link = 0;
        check(name);
        parents(name);
        size_t length = strlen(name);
        if (type == '5' || name[length - 1] == '/') {
            name[length - (name[length - 1] == '/')] = 0;
            if (mkdir(name, 0755) && errno != EEXIST) fail("mkdir", name);
        } else if (type == '2') {
            unlink(name);
            if (symlink(link, name)) fail("symlink", name);
        } else if (type == '1') {
            check(link);
            unlink(name);
            if (linkat(AT_FDCWD, link, AT_FDCWD, name, 0)) fail("link", name);
        } else if (type == '0' || type == 0 || type == '7') {
            file(name, size, mode);
        }
    }
    return 0;
}
