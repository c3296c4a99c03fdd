/* Makes one system call and says how it ended: what no program of busybox asks the kernel for.
 *
 *   syscall [i386:]NUMBER ARGUMENT…
 *
 * An argument is a number, @TEXT for a pointer to that text, or - for a pointer to 256 zero bytes, whose first four are printed as a
 * number afterwards. With i386: it enters the kernel as a 32-bit program does. Static and not position-independent, so that all
 * pointers fit in 32 bits. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char texts[6][256];
static char buffer[256];

static long enter_i386(long number, const long *a) {
    long result;
    __asm__ volatile("push %%rbp\n\tmov %7, %%ebp\n\tint $0x80\n\tpop %%rbp"
                     : "=a"(result)
                     : "a"(number), "b"(a[0]), "c"(a[1]), "d"(a[2]), "S"(a[3]), "D"(a[4]), "r"((int)a[5])
                     : "memory", "r8", "r9", "r10", "r11");
    return (int)result;
}

int main(int count, char **words) {
    long arguments[6] = {0};
    if (count < 2 || count > 8)
        return 2;
    for (int i = 2; i < count; i++) {
        if (words[i][0] == '@') {
            snprintf(texts[i - 2], sizeof texts[0], "%s", words[i] + 1);
            arguments[i - 2] = (long)texts[i - 2];
        } else if (!strcmp(words[i], "-")) {
            arguments[i - 2] = (long)buffer;
        } else {
            arguments[i - 2] = strtol(words[i], NULL, 0);
        }
    }
    long result;
    if (!strncmp(words[1], "i386:", 5)) {
        result = enter_i386(strtol(words[1] + 5, NULL, 0), arguments);
        if (result < 0) {
            errno = -result;
            result = -1;
        }
    } else {
        const long *a = arguments;
        result = syscall(strtol(words[1], NULL, 0), a[0], a[1], a[2], a[3], a[4], a[5]);
    }
    if (result == -1) {
        puts(strerrorname_np(errno));
        return 0;
    }
    int first;
    memcpy(&first, buffer, sizeof first);
    printf("done %d\n", first);
    return 0;
}
