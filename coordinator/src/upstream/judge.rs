//! Whether a narinfo of others is to be believed, and where it may lead. Pure.

use std::net::{IpAddr, Ipv4Addr};

use kiln_nix::content::{self};
use kiln_nix::{NarInfo, PublicKey, Signature};
use kiln_store::{Compression, Vouched};
use kiln_wire::limits::{NAR_BYTES_MAX, UPSTREAM_REDIRECTS_MAX, UPSTREAM_UNSIGNED_NAR_BYTES_MAX, UPSTREAM_URL_BYTES_MAX};
use kiln_wire::{Blake3Hash, Blob, PathInfo, Sha256Hash, StoreDir, StorePath};
use reqwest::Url;

/// A narinfo that is believed.
#[derive(Clone, Debug)]
pub(crate) struct Believed {
    /// Without its signatures.
    pub(crate) narinfo: NarInfo,
    /// Signatures by keys that are trusted for it.
    pub(crate) signatures: Vec<Signature>,
    pub(crate) vouched: Vouched,
    pub(crate) compression: Compression,
}

/// A narinfo that is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Doubt {
    #[error("it describes `{0}`")]
    OtherPath(StorePath),
    #[error("no key that is trusted here signed it, and its path does not follow from its content")]
    Unsigned,
    #[error("its NAR of {0} bytes is over the limit of {NAR_BYTES_MAX}")]
    Large(u64),
    #[error("its NAR of {0} bytes, which nobody signed, is over the limit of {UPSTREAM_UNSIGNED_NAR_BYTES_MAX}")]
    LargeUnsigned(u64),
    #[error("its archive is compressed with `{0}`; `none`, `zstd`, `xz` and `bzip2` are read")]
    Compression(String),
    #[error("its archive is at `{0}`, which is not below the cache")]
    Url(String),
}

/// Says whether a narinfo is to be believed: one of `keys` signed it, or its path follows from what its content is said to be.
///
/// # Errors
/// [`Doubt`] names the rule that it breaks.
pub(crate) fn believe(store_dir: &StoreDir, path: &StorePath, mut narinfo: NarInfo, keys: &[PublicKey]) -> Result<Believed, Doubt> {
    if narinfo.path != *path {
        return Err(Doubt::OtherPath(narinfo.path));
    }
    if narinfo.nar_size_bytes > NAR_BYTES_MAX {
        return Err(Doubt::Large(narinfo.nar_size_bytes));
    }
    if narinfo.url.len() > UPSTREAM_URL_BYTES_MAX {
        return Err(Doubt::Url(narinfo.url.chars().take(200).collect()));
    }
    let Some(compression) = Compression::named(&narinfo.compression) else {
        return Err(Doubt::Compression(narinfo.compression.chars().take(20).collect()));
    };
    let fingerprint = narinfo.fingerprint(store_dir);
    let is_trusted = |signature: &&Signature| keys.iter().any(|key| key.verifies(fingerprint.as_bytes(), signature));
    let mut signatures: Vec<Signature> = narinfo.signatures.iter().take(SIGNATURES_MAX).filter(is_trusted).cloned().collect();
    signatures.dedup();
    let vouched = match (signatures.is_empty(), follows_from_content(store_dir, &narinfo)) {
        (false, _) => Vouched::BySomebody,
        (true, true) => Vouched::ByContent,
        (true, false) => return Err(Doubt::Unsigned),
    };
    // What is kept of thousands is no larger than it must be.
    narinfo.signatures = Vec::new();
    Ok(Believed { narinfo, signatures, vouched, compression })
}

/// Refuses what is believed for its content alone and is large: it would have to be fetched whole before anybody knew better.
///
/// # Errors
/// [`Doubt::LargeUnsigned`].
pub(crate) fn within_bounds(believed: Believed) -> Result<Believed, Doubt> {
    match (believed.vouched, believed.narinfo.nar_size_bytes) {
        (Vouched::ByContent, bytes) if bytes > UPSTREAM_UNSIGNED_NAR_BYTES_MAX => Err(Doubt::LargeUnsigned(bytes)),
        (Vouched::ByContent | Vouched::BySomebody, _) => Ok(believed),
    }
}

/// Whether the path follows from the content address. The content itself is held against that when it is there.
fn follows_from_content(store_dir: &StoreDir, narinfo: &NarInfo) -> bool {
    let blob = Blob { size_bytes: 0, blake3: Blake3Hash([0; 32]), sha256: Sha256Hash([0; 32]) };
    let info = PathInfo {
        path: narinfo.path.clone(),
        nar_hash: narinfo.nar_hash,
        nar_size_bytes: narinfo.nar_size_bytes,
        references: narinfo.references.clone(),
        deriver: None,
        content_address: narinfo.content_address.clone(),
        blob,
    };
    content::check_path(store_dir, &info).is_ok()
}

/// Returns the URL of a file below `base`, which ends with a slash.
///
/// # Errors
/// [`Doubt::Url`] if the file's name leads anywhere else.
pub(crate) fn join(base: &Url, file: &str) -> Result<Url, Doubt> {
    let elsewhere = || Doubt::Url(file.chars().take(200).collect());
    let url = base.join(file).map_err(|_| elsewhere())?;
    let is_below = url.origin() == base.origin() && url.path().len() > base.path().len() && url.path().starts_with(base.path());
    // Servers decode what the URL's own rules leave encoded.
    let is_plain = !url.path().to_ascii_lowercase().contains("%2f") && !url.path().to_ascii_lowercase().contains("%5c");
    match is_below && is_plain && url.username().is_empty() && url.password().is_none() && url.fragment().is_none() {
        true => Ok(url),
        false => Err(elsewhere()),
    }
}

/// Says whether a redirect is followed: not for ever, not from TLS to none, and into the network of this machine only by a cache that is there.
///
/// # Errors
/// Says in words what is wrong with it.
pub(crate) fn may_follow(from: &[Url], to: &Url) -> Result<(), &'static str> {
    let [first, ..] = from else { return Ok(()) };
    if from.len() > UPSTREAM_REDIRECTS_MAX {
        return Err("too many redirects");
    }
    match to.scheme() {
        "https" => {}
        "http" if from.iter().all(|url| url.scheme() == "http") => {}
        _ => return Err("a redirect from TLS to what is not"),
    }
    match is_near(to) && !is_near(first) {
        true => Err("a redirect into the network of this machine"),
        false => Ok(()),
    }
}

/// Whether a URL names an address that only this machine's own network has. What a name leads to is not looked at.
fn is_near(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_end_matches('.');
    let is_near_v4 = |ip: Ipv4Addr| {
        let is_shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
        ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.octets()[0] == 0 || ip.is_broadcast() || is_shared
    };
    match host.trim_matches(['[', ']']).parse() {
        Ok(IpAddr::V4(ip)) => is_near_v4(ip),
        Ok(IpAddr::V6(ip)) => {
            let within = ip.to_ipv4().is_some_and(is_near_v4);
            within || ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local()
        }
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// Signatures that are looked at; a path has one or two.
const SIGNATURES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use kiln_nix::SecretKey;

    use super::*;

    const PATH: &str = "0hm2f1psjpcwg8fijsmr4wwxrx59s092-bar";

    fn narinfo(more: &str) -> NarInfo {
        let text = format!(
            "StorePath: /nix/store/{PATH}\nURL: nar/x.nar.xz\nCompression: xz\n\
             NarHash: sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\nNarSize: 9\nReferences: \n{more}"
        );
        NarInfo::parse(&StoreDir::default(), text.as_bytes()).expect("a narinfo")
    }

    fn key(name: &str) -> SecretKey {
        SecretKey::from_seed(name, [name.as_bytes()[0]; 32]).expect("a good name")
    }

    fn signed(by: &[&str], over: &NarInfo) -> NarInfo {
        let message = over.fingerprint(&StoreDir::default());
        let mut info = narinfo("");
        info.signatures = by.iter().map(|name| key(name).sign(message.as_bytes())).collect();
        info
    }

    #[test]
    fn a_narinfo_is_believed_for_a_trusted_signature_or_its_content_and_for_nothing_else() {
        let path = StorePath::parse(PATH).expect("a path");
        let keys = [key("a").public(), key("b").public()];
        let believe = |info: NarInfo| believe(&StoreDir::default(), &path, info, &keys);
        let plain = narinfo("");
        for (by, expected) in [(&["a"][..], &["a"][..]), (&["x", "b"], &["b"]), (&["a", "x", "b"], &["a", "b"]), (&["a", "a"], &["a"])] {
            let believed = believe(signed(by, &plain)).expect("signed");
            assert_eq!(believed.signatures.iter().map(Signature::key_name).collect::<Vec<_>>(), expected);
            assert_eq!((believed.vouched, believed.compression), (Vouched::BySomebody, Compression::Xz));
        }
        let larger = NarInfo { nar_size_bytes: 10, ..narinfo("") };
        let other = StorePath::parse("1bxagw21mzw0pr7y9jcyjfyrlya5fnxz-bar").expect("a path");
        let table = [
            (signed(&[], &plain), Doubt::Unsigned),
            (signed(&["x"], &plain), Doubt::Unsigned),
            (signed(&["a"], &larger), Doubt::Unsigned),
            (NarInfo { references: [other.clone()].into(), ..signed(&["a"], &plain) }, Doubt::Unsigned),
            (narinfo("CA: fixed:r:sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73\n"), Doubt::Unsigned),
            (NarInfo { path: other.clone(), ..signed(&["a"], &plain) }, Doubt::OtherPath(other)),
            (NarInfo { nar_size_bytes: u64::MAX, ..signed(&["a"], &plain) }, Doubt::Large(u64::MAX)),
            (NarInfo { url: "x".repeat(1025), ..signed(&["a"], &plain) }, Doubt::Url("x".repeat(200))),
            (NarInfo { compression: "br".to_owned(), ..signed(&["a"], &plain) }, Doubt::Compression("br".to_owned())),
        ];
        for (info, expected) in table {
            assert_eq!(believe(info).expect_err("doubted"), expected);
        }
    }

    #[test]
    fn what_nobody_signed_is_not_large() {
        let mut digest = kiln_nix::nar::HashWriter::new(std::io::sink());
        std::io::Write::write_all(&mut digest, b"text").expect("in memory");
        let hash = kiln_nix::hash::nix32(&digest.finish().0.hash.0);
        let info = narinfo(&format!("CA: text:sha256:{hash}\n"));
        let path = content::text_path(&StoreDir::default(), "bar", b"text", &[].into()).expect("a path");
        let at = |nar_size_bytes| NarInfo { path: path.clone(), nar_size_bytes, ..info.clone() };
        let believe = |info| believe(&StoreDir::default(), &path, info, &[]).and_then(within_bounds).map(|believed| believed.vouched);
        let (largest, over) = (UPSTREAM_UNSIGNED_NAR_BYTES_MAX, UPSTREAM_UNSIGNED_NAR_BYTES_MAX + 1);
        assert_eq!(believe(at(largest)), Ok(Vouched::ByContent));
        assert_eq!(believe(at(over)), Err(Doubt::LargeUnsigned(over)));
    }

    #[test]
    fn redirects_end_keep_to_tls_and_lead_into_no_network_of_ours() {
        let far = "https://cache.example.org/x";
        for (from, to, follows) in [
            (far, "https://bucket.example.com/x?token=1", true),
            (far, "http://bucket.example.com/x", false),
            ("http://cache.example.org/x", "http://bucket.example.com/x", true),
            ("http://cache.example.org/x", "https://bucket.example.com/x", true),
            (far, "ftp://bucket.example.com/x", false),
            (far, "https://127.0.0.1/x", false),
            (far, "https://2130706433/x", false),
            (far, "https://0/x", false),
            (far, "https://localhost./x", false),
            (far, "https://10.1.2.3/x", false),
            (far, "https://172.16.0.1/x", false),
            (far, "https://192.168.0.1/x", false),
            (far, "https://169.254.169.254/x", false),
            (far, "https://100.64.0.1/x", false),
            (far, "https://[::1]/x", false),
            (far, "https://[::ffff:10.0.0.1]/x", false),
            (far, "https://[fd00::1]/x", false),
            (far, "https://[fe80::1]/x", false),
            (far, "https://[2001:db8::1]/x", true),
            (far, "https://8.8.8.8/x", true),
            ("http://10.0.0.1/x", "http://10.0.0.2/x", true),
            ("http://127.0.0.1:1/x", "http://127.0.0.1:2/x", true),
        ] {
            let url = |text| Url::parse(text).expect("a URL");
            assert_eq!(may_follow(&[url(from)], &url(to)).is_ok(), follows, "{from} to {to}");
        }
        let far = Url::parse(far).expect("a URL");
        assert!(may_follow(&vec![far.clone(); 5], &far).is_ok());
        assert!(may_follow(&vec![far.clone(); 6], &far).is_err());
    }

    #[test]
    fn an_archive_lies_below_its_cache() {
        let base = Url::parse("https://cache.example.org/a/").expect("a URL");
        for (file, expected) in [
            ("nar/x.nar.xz", Some("https://cache.example.org/a/nar/x.nar.xz")),
            ("nar/x.nar.xz?hash=1", Some("https://cache.example.org/a/nar/x.nar.xz?hash=1")),
            ("https://cache.example.org/a/x", Some("https://cache.example.org/a/x")),
            ("./x", Some("https://cache.example.org/a/x")),
            ("", None),
            ("../x", None),
            ("nar/../../x", None),
            ("nar/%2e%2e/%2e%2e/x", None),
            ("nar/..%2f..%2fx", None),
            ("nar\\..\\..\\x", None),
            ("/x", None),
            ("//other.example.org/a/x", None),
            ("https://other.example.org/a/x", None),
            ("http://cache.example.org/a/x", None),
            ("https://me@cache.example.org/a/x", None),
            ("file:///etc/passwd", None),
        ] {
            assert_eq!(join(&base, file).ok().as_ref().map(Url::as_str), expected, "{file}");
        }
    }
}
