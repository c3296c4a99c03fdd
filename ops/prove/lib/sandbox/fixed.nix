# Fixed-output derivations: what their builders see, and what of theirs is kept. Items 12, 19, 20, 32 and 38 of the checklist.
{ shell, make, sees, system, ... }:
let
  leaf = make "leaf" { } "mkdir $out; echo leaf >$out/file";
  fixed = name: mode: algo: hash: attrs: make name ({ outputHashMode = mode; outputHashAlgo = algo; outputHash = hash; } // attrs);
  flat = name: algo: fixed name "flat" algo (builtins.hashString algo "fixed\n") { };
  tree = "mkdir $out; printf 'fixed\\n' >$out/file; ln -s file $out/link";
  # Hashes of the NARs of `tree` and of the executable file.
  treeSha256 = "4c6ea7fe4d3487eac85a49f4cf94d22eff7d943589f94483d8cd52f653e0197b";
  treeSha1 = "e3ff2613157cd1a39f86075a4795122d270f5a19";
  executableSha256 = "32697b9a9a38c1ea49470a79eb5e404850a0b847134c5ece48fc561b347c04c2";
  sees-fixed = name: attrs: script: {
    facts = "log";
    drv = fixed name "flat" "sha256" (builtins.hashString "sha256" "fixed\n") attrs ''
      facts=/dev/stderr; printf 'fixed\n' >$out
      ${script}
    '';
  };
in
{
  fixed-environment = sees-fixed "fixed-environment" { impureEnvVars = [ "PROVE_SET" "PROVE_UNSET" "plain" ]; plain = "the recipe's"; } ''
    tr '\0' '\n' </proc/$$/environ | while IFS='=' read -r name value; do say "$name" "$value"; done
  '' // { items = [ 19 20 ]; };
  fixed-files = sees-fixed "fixed-files" { impureEnvVars = [ "PROVE_HOSTS" "PROVE_RESOLV" "PROVE_SERVICES" ]; } ''
    find /etc /dev /build /tmp /bin | sort | while read -r path; do
      # These are the host's own or copies of them; their modes there are the host's.
      case $path in /etc/hosts | /etc/resolv.conf | /etc/services) format=%F ;; *) format='%F %a %u:%g' ;; esac
      say "$path" "$(stat -c "$format" "$path")"
    done
    for file in /etc/passwd /etc/group /etc/nsswitch.conf; do say "content of $file" "$(sha256sum <$file 2>&1)"; done
    whose() { say "content of $1" "$([ "$(sha256sum <$1 | cut -c1-64)" = "$2" ] && echo "the host's" || tr '\n' ' ' <$1)"; }
    whose /etc/hosts "$PROVE_HOSTS"; whose /etc/resolv.conf "$PROVE_RESOLV"; whose /etc/services "$PROVE_SERVICES"
  '' // { items = [ 11 12 ]; };
  fixed-network = sees-fixed "fixed-network" { impureEnvVars = [ "PROVE_NETWORK" "PROVE_PORT" ]; } ''
    say "network namespace" "$([ "$(readlink /proc/$$/ns/net)" = "$PROVE_NETWORK" ] && echo "the host's" || echo "its own")"
    say "the host's loopback" "$(echo | nc -w 3 127.0.0.1 "$PROVE_PORT" >/dev/null 2>&1 && echo reached || echo "not reached")"
    say "host name" "$(hostname)"
    say "domain name" "$(cat /proc/sys/kernel/domainname)"
    try "resolve localhost" ping -c 1 -W 1 localhost
  '' // { items = [ 1 5 12 ]; };
  fixed-process = sees-fixed "fixed-process" { } ''
    for field in Uid Gid Groups CapEff NoNewPrivs Seccomp; do say $field "$(grep "^$field:" /proc/$$/status | cut -f2-)"; done
    say pid $$
  '' // { items = [ 1 3 12 ]; };
  flat-sha256 = { items = [ 38 ]; drv = flat "flat-sha256" "sha256" "printf 'fixed\\n' >$out"; };
  flat-sha512 = { items = [ 38 ]; drv = flat "flat-sha512" "sha512" "printf 'fixed\\n' >$out"; };
  flat-sha1 = { items = [ 38 ]; drv = flat "flat-sha1" "sha1" "printf 'fixed\\n' >$out"; };
  flat-md5 = { items = [ 38 ]; drv = flat "flat-md5" "md5" "printf 'fixed\\n' >$out"; };
  recursive-sha256 = { items = [ 38 ]; drv = fixed "recursive-sha256" "recursive" "sha256" treeSha256 { } tree; };
  recursive-sha1 = { items = [ 38 ]; drv = fixed "recursive-sha1" "recursive" "sha1" treeSha1 { } tree; };
  recursive-executable = {
    items = [ 38 ];
    drv = fixed "recursive-executable" "recursive" "sha256" executableSha256 { } "printf 'fixed\\n' >$out; chmod 755 $out";
  };

  flat-that-is-executable = {
    items = [ 38 ];
    drv = flat "flat-that-is-executable" "sha256" "printf 'fixed\\n' >$out; chmod 755 $out";
    refused = { nix = "should be a non-executable regular file"; kiln = "must be one file that is not executable"; };
  };
  flat-that-is-a-directory = {
    items = [ 38 ];
    drv = flat "flat-that-is-a-directory" "sha256" "mkdir $out; printf 'fixed\\n' >$out/file";
    refused = { nix = "should be a non-executable regular file"; kiln = "must be one file that is not executable"; };
  };
  flat-that-is-a-link = {
    items = [ 38 ];
    drv = flat "flat-that-is-a-link" "sha256" "ln -s /etc/passwd $out";
    refused = { nix = "should be a non-executable regular file"; kiln = "must be one file that is not executable"; };
  };
  another-hash = {
    items = [ 38 ];
    drv = flat "another-hash" "sha256" "echo other >$out";
    refused = { nix = "hash mismatch in fixed-output derivation"; kiln = "hash mismatch in fixed-output derivation"; };
  };
  # The oracle fails at an assertion of its own.
  fixed-that-refers = {
    items = [ 38 ];
    drv = fixed "fixed-that-refers" "flat" "sha256" (builtins.hashString "sha256" "${builtins.unsafeDiscardStringContext "${leaf}"}\n")
      { inherit leaf; } "echo $leaf >$out";
    refused = { nix = "not allowed to refer to|illegal path references|Assertion"; kiln = "must not refer to store paths"; };
  };
  fixed-that-fails = {
    items = [ 32 38 ];
    drv = flat "fixed-that-fails" "sha256" "printf 'fixed\\n' >$out; exit 5";
    refused = { nix = "failed with exit code 5"; kiln = "failed with exit code 5"; };
  };
}
