# What a builder sees of itself and of the machine: items 1–21 of the checklist.
{ shell, make, sees, system, ... }:
let
  dep = make "dep" { } "mkdir $out; echo of the input >$out/file";
  depFile = make "dep-file" { } "echo of the input >$out";
  depLink = make "dep-link" { } "ln -s ${dep}/file $out";

  # Everything that can be looked at, with its kind, mode and owner; a file's size too. The host decides nothing of it.
  tree = ''
    find / \( -path /proc -o -path "/nix/store/*" \) -prune -o -print | sort | while read -r path; do
      case $(stat -c %F "$path") in
        "regular file" | "regular empty file") format='%F %a %u:%g %s' ;;
        "symbolic link") format='%F %u:%g %N' ;;
        "character special file") format='%F %a %u:%g %t:%T' ;;
        *) format='%F %a %u:%g' ;;
      esac
      say "$path" "$(stat -c "$format" "$path")"
    done
  '';

  devices = "say devices \"$(ls /dev | tr '\\n' ' ')\"";

  process = ''
    say pid $$
    for field in Uid Gid Groups CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp SigBlk SigIgn Umask; do
      say $field "$(grep "^$field:" /proc/$$/status | cut -f2-)"
    done
    # The last field: everything behind the program's name.
    set -- $(sed 's/.*) //' /proc/$$/stat)
    say "parent, group, session" "$2 $3 $4"
    say "has a controlling terminal" "$([ "$5" = 0 ] && echo no || echo yes)"
    say nice "''${17}"
    say personality "$(cat /proc/$$/personality)"
    say oom_score_adj "$(cat /proc/$$/oom_score_adj)"
    say coredump_filter "$(cat /proc/$$/coredump_filter)"
    say "working directory" "$(readlink /proc/$$/cwd)"
    say "root directory" "$(readlink /proc/$$/root)"
    say uname "$(uname -m) $(uname -s) $(uname -o)"
    say release "$(uname -r)"
    say "ids inside" "$(id)"
    # The second column names host ids, which are a slot's own.
    for map in uid_map gid_map; do say $map "$(awk '{ print $1, $3 }' /proc/$$/$map)"; done
    say setgroups "$(cat /proc/$$/setgroups)"
    say processors "$(nproc)"
  '';
in
{
  environment = {
    items = [ 19 ];
    drv = make "environment" { plain = "value"; empty = ""; lines = "one\ntwo\n"; text = "ümläut 'quoted' \"twice\" $dollar \\"; } ''
      mkdir $out; cat /proc/$$/environ >$out/environ
    '';
  };
  # A recipe may set the first of Nix's own variables, not the last.
  environment-overridden = {
    items = [ 19 ];
    drv = make "environment-overridden"
      {
        PATH = "/mine"; HOME = "/mine"; NIX_STORE = "/mine"; NIX_BUILD_CORES = "mine"; NIX_BUILD_TOP = "/mine"; TMPDIR = "/mine";
        TEMPDIR = "/mine"; TMP = "/mine"; TEMP = "/mine"; PWD = "/mine"; NIX_LOG_FD = "mine"; TERM = "mine";
        NIX_OUTPUT_CHECKED = "mine"; NIX_ATTRS_JSON_FILE = "/mine";
      } ''
      mkdir $out; cat /proc/$$/environ >$out/environ
    '';
  };
  cores-of-a-serial-build = {
    items = [ 19 ];
    drv = sees "cores-of-a-serial-build" { enableParallelBuilding = null; } "say NIX_BUILD_CORES $NIX_BUILD_CORES";
  };
  arguments = {
    items = [ 18 21 ];
    drv = derivation {
      name = "arguments";
      inherit system;
      builder = "${shell}/busybox";
      args = [ "sh" "-c" "mkdir $out $dev; cat /proc/$$/cmdline >$out/cmdline; printf '%s\\n' \"$both\" >$out/both" ]
        ++ [ "" "two words" "\n" "--" "é" (placeholder "out") "<${placeholder "dev"}>" ];
      outputs = [ "out" "dev" ];
      both = "${placeholder "dev"}:${placeholder "out"}:${placeholder "unknown"}";
    };
  };
  process = { items = [ 1 2 3 14 16 17 ]; drv = sees "process" { } process; };
  process-of-32-bits = { items = [ 16 ]; drv = sees "process-of-32-bits" { system = "i686-linux"; } process; };
  limits = { items = [ 17 ]; drv = make "limits" { } "mkdir $out; sed 's/  *$//' /proc/$$/limits >$out/limits"; };
  descriptors = {
    items = [ 17 ];
    drv = sees "descriptors" { } ''
      # As the builder got them: this shell opens none of its own before.
      say open "$(ls /proc/$$/fd | tr '\n' ' ')"
      say "standard input" "$(readlink /proc/$$/fd/0)"
      # The number of a terminal is the machine's.
      say "standard output" "$(readlink /proc/$$/fd/1 | sed 's/[0-9][0-9]*/N/')"
      say "standard error" "$(readlink /proc/$$/fd/2 | sed 's/[0-9][0-9]*/N/')"
      say "standard output is a terminal" "$([ -t 1 ] && echo yes || echo no)"
      say "terminal" "$(stty -a <&1 2>&1 | tr '\n' ' ')"
      try "open /dev/tty" sh -c "echo >/dev/tty"
    '';
  };
  root = { items = [ 3 6 7 9 10 11 13 39 ]; drv = sees "root" { inherit dep; } tree; };
  kvm-asked-for = { items = [ 9 29 ]; needs = "/dev/kvm"; drv = sees "kvm-asked-for" { requiredSystemFeatures = [ "kvm" ]; } devices; };
  kvm-not-asked-for = { items = [ 9 29 ]; needs = "/dev/kvm"; drv = sees "kvm-not-asked-for" { } devices; };
  # Nix 2.8 does not know this feature, and builds as ever where it is told that it has it.
  uid-range = {
    items = [ 3 7 10 11 29 ];
    drv = sees "uid-range" { requiredSystemFeatures = [ "uid-range" ]; } ''
      say ids "$(id)"
      for map in uid_map gid_map; do say $map "$(awk '{ print $1, $3 }' /proc/$$/$map)"; done
      say setgroups "$(cat /proc/$$/setgroups)"
      say environment "$(tr '\0' '\n' </proc/$$/environ | grep -v -e ^out= -e ^name= | sort | tr '\n' ' ')"
      for path in / /bin /build /dev /etc /etc/group /etc/hosts /etc/passwd /nix /nix/store /proc /sys /tmp; do
        say "$path" "$(stat -c '%F %a %u:%g' $path 2>/dev/null || echo absent)"
      done
      say passwd "$(tr '\n' ' ' </etc/passwd)"
      say group "$(tr '\n' ' ' </etc/group)"
      say network "$(ls /sys/class/net 2>&1)"
      say "control groups" "$(cut -d: -f3 /proc/$$/cgroup | sort -u | grep -c -x /)"
      say capabilities "$([ $(grep ^CapEff: /proc/$$/status | cut -f2) = 0000000000000000 ] && echo none || echo some)"
      try "mount" sh -c "mkdir -p /run && mount -t tmpfs none /run && umount /run"
      try "mount a new /proc" unshare -mpf --mount-proc true
      try "nest a user namespace" unshare -Ur id -u
      echo >file
      try "give a file away" sh -c "chown 4242:4242 file && stat -c %u:%g file"
      try "give a file to nobody it knows" chown 65536 file
      try "become nobody" su -s /bin/sh nobody -c "id -u"
      try "change /etc" sh -c "echo x >/etc/new && rm /etc/new"
      try "set-id" chmod 4755 file
      try "make a device" mknod device c 1 3
      try "write an input" sh -c "echo >>${shell}/busybox"
      echo >$out/given; chown 4242:4242 $out/given 2>/dev/null || true
    '';
  };
  etc = { items = [ 11 ]; drv = make "etc" { } "mkdir $out; cp /etc/* $out"; };
  mounts = {
    items = [ 6 8 9 10 ];
    drv = sees "mounts" { inherit dep depFile depLink; } ''
      while read -r _ _ _ _ point options rest; do
        kept=
        for option in $(echo "$options" | tr , ' '); do
          case $option in ro | rw | nosuid | nodev | noexec) kept="$kept $option" ;; esac
        done
        shared=
        while [ "''${rest%% *}" != - ]; do
          shared="$shared ''${rest%%:*}"
          rest=''${rest#* }
        done
        rest=''${rest#- }
        kind=''${rest%% *} super=
        # Others are the host's, and so is what they are called. Owners are host ids.
        case $kind:$point in
          proc:/proc | tmpfs:/ | tmpfs:/dev/shm | devpts:/dev/pts)
            super=$(echo "''${rest##* }" | tr , '\n' | grep -vE '^(uid|gid|inode)' | tr '\n' ,) ;;
          *) kind=host ;;
        esac
        say "$(echo "$point" | sed 's|/[0-9a-z]\{32\}-|/HASH-|')" "$kind$kept;$super$shared"
      done </proc/$$/mountinfo
    '';
  };
  writes = {
    items = [ 6 8 9 10 14 ];
    drv = sees "writes" { inherit dep depFile depLink; } ''
      try "write into an input" sh -c "echo >${dep}/file"
      try "make a file in an input" touch ${dep}/new
      try "change the mode of an input" chmod 777 ${dep}/file
      try "change the owner of an input" chown 1000:100 ${dep}/file
      try "change the time of an input" touch ${dep}/file
      try "remove an input" rm -r ${depFile}
      try "move an input" mv ${depFile} /nix/store/elsewhere
      try "link an input into /build" ln ${dep}/file /build/link
      try "link an input that is a file into the store" ln ${depFile} /nix/store/link
      try "remove an input that is a link" rm ${depLink}
      try "read an input that is a link" cat ${depLink}
      try "make a file in the store" sh -c "echo >/nix/store/new"
      try "make a directory in the store" mkdir /nix/store/dir
      try "move out of /build into the store" sh -c "echo moved >/build/file; mv /build/file /nix/store/moved; cat /nix/store/moved"
      try "link out of /build into the store" sh -c "echo linked >/build/file; ln /build/file /nix/store/linked"
      try "link out of /build into /tmp" ln /build/file /tmp/linked
      try "list the store" sh -c "ls /nix/store | grep -v -e busybox | sed 's/^[0-9a-z]*-//' | sort"
      try "make a file in /" sh -c "echo >/new"
      try "make a file in /nix" sh -c "echo >/nix/new"
      try "make a file in /etc" sh -c "echo >/etc/new"
      try "write /etc/passwd" sh -c "echo >>/etc/passwd"
      try "make a file in /dev" sh -c "echo >/dev/new"
      try "make a file in /dev/shm" sh -c "echo >/dev/shm/new"
      try "make a file in /tmp" sh -c "echo >/tmp/new"
      try "make a file in /bin" sh -c "echo >/bin/new"
      try "write /bin/sh" sh -c "echo >/bin/sh"
      try "change the mode of /" chmod 777 /
      try "change the mode of /tmp" chmod 700 /tmp
      try "change the mode of /build" chmod 777 /build
      try "change the mode of the store" chmod 777 /nix/store
      try "write /dev/null" sh -c "echo >/dev/null"
      try "read /dev/zero" sh -c "head -c 2 /dev/zero | od -An -tx1"
      try "write /dev/full" dd if=/dev/zero of=/dev/full count=1 status=none
      try "mount" mount -t tmpfs none /tmp
      try "remount an input" mount -o remount,rw,bind ${dep}
      try "unmount /proc" umount /proc
      try "change the root" chroot / true
      try "set the host name" hostname other
      try "make a device" mknod /tmp/device c 1 3
      try "make a fifo" mknod /tmp/fifo p
      try "read the kernel's log" dmesg
      try "write a kernel setting" sh -c "echo 1 >/proc/sys/kernel/panic"
      try "lower nice" nice -n -5 true
      try "signal outside" kill -0 2
      try "unshare a user namespace" unshare -U true
      try "unshare a mount namespace" unshare -m true
      try "become root" setpriv --nnp true
      try "raise a limit" sh -c "ulimit -H -c; ulimit -c"
    '';
  };
  set-id = {
    items = [ 14 ];
    drv = sees "set-id" { } ''
      cd /build; echo >file; mkdir dir
      for mode in 4755 2755 6755 1755 0755; do
        try "chmod $mode of a file" chmod $mode file
        try "chmod $mode of a directory" chmod $mode dir
        try "mkdir -m $mode" mkdir -m $mode made-$mode
        say "after it" "$(stat -c %a file) $(stat -c %a dir) $(stat -c %a made-$mode 2>&1)"
      done
      try "chmod u+s" chmod u+s file
      try "chmod g+s" chmod g+s dir
      say "after it" "$(stat -c %a file) $(stat -c %a dir)"
    '';
  };
  network = {
    items = [ 1 5 ];
    drv = sees "network" { } ''
      say devices "$(ip -o link | sed 's/.*link//' | wc -l) $(cut -d: -f1 /proc/net/dev | tail -n +3 | tr -d ' \n')"
      say addresses "$(ip -o addr | tr '\n' ';')"
      say routes "$(ip route | tr '\n' ';')"
      say "host name" "$(hostname)"
      say "domain name" "$(cat /proc/sys/kernel/domainname)"
      say "unix sockets" "$(tail -n +2 /proc/net/unix | wc -l)"
      try "reach a host" nc -w 1 192.0.2.1 80
      try "resolve localhost" ping -c 1 -W 1 localhost
      try "resolve a name" nslookup example.org
      say "loopback" "$( (nc -l -p 5555 >/build/got & until echo through | nc 127.0.0.1 5555; do :; done; wait; cat /build/got) 2>/dev/null)"
      say "message queues" "$(ls /proc/sys/fs/mqueue 2>&1 | tr '\n' ' ')"
      say "shared memory segments" "$(tail -n +2 /proc/sysvipc/shm | wc -l)"
    '';
  };
  proc = {
    items = [ 10 ];
    drv = sees "proc" { } ''
      say processes "$(cd /proc; echo [0-9]*)"
      for path in kcore kmsg sysrq-trigger keys timer_list sched_debug sys/kernel/core_pattern bus fs irq acpi scsi; do
        say "$path" "$(stat -c '%F %a %u:%g' /proc/$path 2>&1)"
      done
      say "version" "$(cat /proc/version)"
      say "max_user_namespaces is zero" "$([ "$(cat /proc/sys/user/max_user_namespaces)" = 0 ] && echo yes || echo no)"
    '';
  };
  shell = {
    items = [ 13 ];
    drv = derivation {
      name = "shell";
      inherit system;
      builder = "/bin/sh";
      args = [ "-c" "echo $0 >$out; cat /proc/$$/cmdline >>$out; wc -c </bin/sh >>$out" ];
    };
  };
  log = {
    items = [ 18 ];
    drv = make "log" { } ''
      echo out; echo err >&2; printf 'no end'; printf '\001\n\002\n\033[31mred\033[0m\r\ttab\000nul\377\n'
      printf '@nix {"action":"msg","level":0,"msg":"forged"}\n'; printf '\r\nlast without an end' >&2
      echo >$out
    '';
  };
}
