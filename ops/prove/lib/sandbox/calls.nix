# What the kernel does for a builder when it is asked past the C library: items 1, 2, 14, 15 and 17 of the checklist. Of what a call
# returns, only whether it was done is said, and the number that it left in a buffer.
{ make, sees, probe, ... }:
let
  call = ''
    call() {
      what=$1
      shift
      rm -f victim made
      echo >victim
      say "$what" "$(${probe}/syscall "$@" 2>&1)"
    }
    # Says also what became of the file that was there, and of the one that is made.
    makes() {
      call "$@"
      say "$1: files" "$(stat -c %a victim made 2>/dev/null | tr '\n' ' ')"
    }
    cd /build
  '';
in
{
  # Numbers of x86-64, where a call has no name that is known better.
  calls = {
    items = [ 1 2 14 17 ];
    drv = sees "calls" { } (call + ''
      call "setxattr" 188 @victim @user.x @v 1 0
      call "getxattr" 191 @victim @user.x - 100
      call "listxattr" 194 @victim - 100
      call "removexattr" 197 @victim @user.x
      call "setxattr of an ACL" 188 @victim @system.posix_acl_access - 28 0
      call "fgetxattr of no file" 193 99 @user.x - 100
      makes "chmod 4755" 90 @victim 04755
      makes "chmod 2755" 90 @victim 02755
      makes "chmod 1755" 90 @victim 01755
      makes "fchmodat 4755" 268 -100 @victim 04755
      makes "fchmodat2 4755" 452 -100 @victim 04755 0
      makes "fchmodat2 0755" 452 -100 @victim 0755 0
      makes "open with mode 4755" 2 @made 0101 04755
      makes "mknod of a file, mode 4755" 133 @made 0104755 0
      makes "mknodat of a file, mode 2755" 259 -100 @made 0102755 0
      makes "mknod of a file, mode 0644" 133 @made 0100644 0
      makes "mknod of a device" 133 @made 020644 0x103
      makes "i386 chmod 4755" i386:15 @victim 04755
      call "i386 setxattr" i386:226 @victim @user.x @v 1 0
      call "i386 getpid" i386:20
      call "i386 socketcall" i386:102 1 -
      call "x32 getpid" 0x40000027
      call "unix socket" 41 1 1 0
      call "internet socket" 41 2 1 0
      call "internet 6 socket" 41 10 1 0
      call "netlink socket" 41 16 3 0
      call "packet socket" 41 17 3 0
      call "raw socket" 41 2 3 1
      call "ping socket" 41 2 2 1
      call "keyctl: session keyring" 250 0 -3 0
      call "keyctl: join a session" 250 1 0
      call "add_key" 248 @user @name @v 1 -3
      call "ptrace: be traced" 101 0 0 0 0
      call "unshare users" 272 0x10000000
      call "unshare mounts" 272 0x20000
      call "setns of no file" 308 99 0
      call "mount" 165 @none @/tmp @tmpfs 0 0
      call "pivot_root" 155 @/tmp @/tmp
      call "chroot" 161 @/tmp
      call "setuid 0" 105 0
      call "setgroups" 116 0 -
      call "reboot" 169 0 0 0 0
      call "syslog" 103 10 0 0
      call "swapoff" 168 @/tmp
      call "settimeofday" 164 - 0
      call "death signal" 157 2 -
      call "dumpable" 157 3
      call "no new privileges" 157 39
      call "child subreaper" 157 37 -
      call "priority" 140 0 0
      call "scheduler" 145 0
      call "ioprio" 252 1 0
      call "adopt real-time scheduling" 144 0 1 -
      call "memfd" 319 @name 0
      call "inotify" 294 0
      call "fanotify" 300 0 0
    '');
  };
  # Errors that an older kernel answers by itself, without any filter.
  calls-of-a-recent-kernel = {
    items = [ 14 15 ];
    needs = "kernel 6.13";
    drv = sees "calls-of-a-recent-kernel" { } (call + ''
      call "setxattrat" 463 -100 @victim 0 @user.x - 16
      call "getxattrat" 464 -100 @victim 0 @user.x - 16
      call "listxattrat" 465 -100 @victim 0 - 100
      call "removexattrat" 466 -100 @victim 0 @user.x
      call "io_uring_setup" 425 4 -
      call "userfaultfd" 323 0
      call "bpf" 321 0 - 48
      call "perf_event_open" 298 - 0 -1 -1 0
      call "landlock version" 444 0 0 1
    '');
  };
  sockets-to-the-hypervisor = { items = [ 14 ]; needs = "family 40"; drv = sees "sockets-to-the-hypervisor" { } (call + "call socket 41 40 1 0"); };
}
