// What the kernel's part of one sandbox costs at least, for ops/prove/sandbox-cost: namespaces, a tree of mounts that was made once and is
// cloned in one call, a network namespace that was made ahead with its loopback up, /proc, pivot_root, exec of a static program, reaped.
// No builder's files, no terminal, no log, no limits, no filter, no user: a launcher that does its work costs more.
//
//   floor COUNT ROUNDS PROGRAM DIR     the inputs are DIR/0 … DIR/COUNT-1; prints the median CPU (own and child's) and wall in ms
//
// Needs root and Linux 6.15, which clones trees that are mounted nowhere.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void need(int ok, const char *what) {
	if (!ok) {
		perror(what);
		exit(1);
	}
}

static double ms(clockid_t clock) {
	struct timespec now;
	clock_gettime(clock, &now);
	return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

static double cpu_of(const struct rusage *usage) {
	return (usage->ru_utime.tv_sec + usage->ru_stime.tv_sec) * 1e3 + (usage->ru_utime.tv_usec + usage->ru_stime.tv_usec) / 1e3;
}

static int open_tree_at(int dir, const char *path, unsigned flags) {
	return syscall(SYS_open_tree, dir, path, flags | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
}

static void bind_to(const char *source, const char *target, int is_file) {
	if (is_file)
		close(open(target, O_CREAT | O_WRONLY, 0644));
	else
		mkdir(target, 0755);
	need(mount(source, target, 0, MS_BIND, 0) == 0, target);
}

// Builds the tree on `at`, takes it off, and returns it mounted nowhere.
static int template(const char *at, int count, const char *program, const char *inputs) {
	static const char *const dirs[] = {"proc", "dev", "nix", "nix/store"};
	static const char *const devices[] = {"null", "zero", "full", "random", "urandom", "tty"};
	char source[4096], target[4096];
	need(mount("tmpfs", at, "tmpfs", MS_NOSUID | MS_NODEV, 0) == 0, "mount tmpfs");
	for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
		snprintf(target, sizeof target, "%s/%s", at, dirs[i]);
		need(mkdir(target, 0755) == 0, target);
	}
	for (int i = 0; i < count; i++) {
		snprintf(source, sizeof source, "%s/%d", inputs, i);
		snprintf(target, sizeof target, "%s/nix/store/%d", at, i);
		bind_to(source, target, 0);
	}
	snprintf(target, sizeof target, "%s/program", at);
	bind_to(program, target, 1);
	struct mount_attr sealed = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, .propagation = MS_PRIVATE};
	need(syscall(SYS_mount_setattr, AT_FDCWD, at, AT_RECURSIVE, &sealed, sizeof sealed) == 0, "mount_setattr");
	struct mount_attr writable = {.attr_clr = MOUNT_ATTR_RDONLY};
	need(syscall(SYS_mount_setattr, AT_FDCWD, at, 0, &writable, sizeof writable) == 0, "mount_setattr");
	for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
		snprintf(source, sizeof source, "/dev/%s", devices[i]);
		snprintf(target, sizeof target, "%s/dev/%s", at, devices[i]);
		bind_to(source, target, 1);
	}
	int tree = open_tree_at(AT_FDCWD, at, AT_RECURSIVE);
	need(tree >= 0, "open_tree");
	need(umount2(at, MNT_DETACH) == 0, "umount");
	return tree;
}

static int network(void) {
	need(unshare(CLONE_NEWNET) == 0, "unshare");
	int socket_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_LOOPBACK | IFF_RUNNING};
	need(ioctl(socket_fd, SIOCSIFFLAGS, &request) == 0, "bring loopback up");
	close(socket_fd);
	int fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	need(fd >= 0, "open network namespace");
	return fd;
}

static void write_file(pid_t pid, const char *name, const char *text) {
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	need(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), path);
	close(fd);
}

static void child(int go, int tree, const char *at) {
	char byte;
	need(read(go, &byte, 1) == 1, "read");
	need(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0) == 0, "make private");
	need(syscall(SYS_move_mount, tree, "", AT_FDCWD, at, MOVE_MOUNT_F_EMPTY_PATH) == 0, "move_mount");
	need(chdir(at) == 0 && mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0) == 0, "mount proc");
	need(syscall(SYS_pivot_root, ".", ".") == 0 && umount2(".", MNT_DETACH) == 0 && chdir("/") == 0, "pivot_root");
	execl("/program", "program", (char *)0);
	need(0, "exec");
}

static int by_size(const void *a, const void *b) {
	double left = *(const double *)a, right = *(const double *)b;
	return (left > right) - (left < right);
}

int main(int argc, char **argv) {
	need(argc == 5, "usage: floor COUNT ROUNDS PROGRAM DIR");
	int count = atoi(argv[1]), rounds = atoi(argv[2]);
	char at[] = "/tmp/kiln-floor.XXXXXX";
	need(mkdtemp(at) != 0, "mkdtemp");
	need(unshare(CLONE_NEWNS) == 0 && mount(0, "/", 0, MS_REC | MS_PRIVATE, 0) == 0, "unshare mounts");
	int tree = template(at, count, argv[3], argv[4]);
	int host = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	int *pool = calloc(rounds, sizeof *pool);
	double *cpu = calloc(rounds, sizeof *cpu), *wall = calloc(rounds, sizeof *wall);
	for (int round = 0; round < rounds; round++) {
		pool[round] = network();
		need(setns(host, CLONE_NEWNET) == 0, "setns");
	}
	for (int round = 0; round < rounds; round++) {
		int go[2], status;
		struct rusage usage;
		double start = ms(CLOCK_MONOTONIC), before = ms(CLOCK_PROCESS_CPUTIME_ID);
		need(pipe2(go, O_CLOEXEC) == 0, "pipe");
		int clone = open_tree_at(tree, "", AT_EMPTY_PATH | AT_RECURSIVE);
		need(clone >= 0, "clone the tree (Linux 6.15 or newer)");
		need(setns(pool[round], CLONE_NEWNET) == 0, "setns");
		struct clone_args args = {
			.flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP, .exit_signal = SIGCHLD};
		pid_t pid = syscall(SYS_clone3, &args, sizeof args);
		need(pid >= 0, "clone3");
		if (pid == 0)
			child(go[0], clone, at);
		need(setns(host, CLONE_NEWNET) == 0, "setns");
		close(clone);
		close(pool[round]);
		write_file(pid, "uid_map", "0 0 65536");
		write_file(pid, "gid_map", "0 0 65536");
		need(write(go[1], "1", 1) == 1, "write");
		need(wait4(pid, &status, 0, &usage) == pid && status == 0, "the sandbox failed");
		close(go[0]);
		close(go[1]);
		cpu[round] = ms(CLOCK_PROCESS_CPUTIME_ID) - before + cpu_of(&usage);
		wall[round] = ms(CLOCK_MONOTONIC) - start;
	}
	rmdir(at);
	qsort(cpu, rounds, sizeof *cpu, by_size);
	qsort(wall, rounds, sizeof *wall, by_size);
	printf("{\"cpu_ms\": %.3f, \"wall_ms\": %.3f}\n", cpu[rounds / 2], wall[rounds / 2]);
}
