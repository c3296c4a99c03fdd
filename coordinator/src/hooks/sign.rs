//! Signatures of messages, as receivers verify them. Pure.
//!
//! Source: the specification of Standard Webhooks 1.0: HMAC-SHA256 over `id.timestamp.body`, in base64 behind `v1,`; several signatures stand
//! behind each other, and one that fits is enough.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A secret that a receiver has too.
#[derive(Clone)]
pub(crate) struct Secret(hmac::Key);

/// A text that is no secret. It does not repeat the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The prefix is missing.
    #[error("want `whsec_` and then the secret in base64; `echo whsec_$(openssl rand -base64 32)` makes one")]
    Prefix,
    /// The rest is not base64.
    #[error("what stands behind `whsec_` is not base64")]
    Base64,
    /// It is too short to be safe, or longer than the specification has it.
    #[error("the secret has {0} bytes: from 24 to 64")]
    Length(usize),
    /// There is none.
    #[error("the file is empty: want a line with `whsec_` and the secret in base64")]
    Empty,
    /// There are too many.
    #[error("the file has more than 2 lines: one secret, or two while a receiver goes over from one to the other")]
    Many,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    fn parse(text: &str) -> Result<Self, SecretError> {
        let coded = text.strip_prefix("whsec_").ok_or(SecretError::Prefix)?;
        let bytes = STANDARD.decode(coded).map_err(|_| SecretError::Base64)?;
        match bytes.len() {
            24..=64 => Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes))),
            count => Err(SecretError::Length(count)),
        }
    }

    /// Reads secrets, one a line.
    pub(crate) fn parse_all(text: &str) -> Result<Vec<Self>, SecretError> {
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        match lines.len() {
            0 => Err(SecretError::Empty),
            1 | 2 => lines.into_iter().map(Self::parse).collect(),
            _ => Err(SecretError::Many),
        }
    }
}

/// Returns the value of `webhook-signature`. `sent_at_s` are seconds since the epoch, as `webhook-timestamp` has them.
pub(crate) fn signature(secrets: &[Secret], id: &str, sent_at_s: u64, body: &[u8]) -> String {
    let signed = [format!("{id}.{sent_at_s}.").as_bytes(), body].concat();
    let one = |secret: &Secret| format!("v1,{}", STANDARD.encode(hmac::sign(&secret.0, &signed)));
    secrets.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification and of its libraries.
    const EXAMPLE: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn the_signature_of_the_specifications_example_is_made() {
        let secrets = Secret::parse_all(EXAMPLE).expect("a secret");
        let signed = signature(&secrets, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn while_a_receiver_goes_over_both_secrets_sign() {
        let other = format!("whsec_{}", STANDARD.encode([7; 32]));
        let both = Secret::parse_all(&format!("{EXAMPLE}\n{other}\n")).expect("secrets");
        let [old, new] = [EXAMPLE, &other].map(|text| signature(&Secret::parse_all(text).expect("a secret"), "m", 1, b"{}"));
        assert_eq!(signature(&both, "m", 1, b"{}"), format!("{old} {new}"));
    }

    #[test]
    fn what_is_no_secret_is_refused_and_not_repeated() {
        let short = format!("whsec_{}", STANDARD.encode([1; 23]));
        let long = format!("whsec_{}", STANDARD.encode([1; 65]));
        for (text, expected) in [
            ("", SecretError::Empty),
            ("hunter2hunter2hunter2hunter2", SecretError::Prefix),
            ("whsec_***", SecretError::Base64),
            (short.as_str(), SecretError::Length(23)),
            (long.as_str(), SecretError::Length(65)),
            (&format!("{EXAMPLE}\n{EXAMPLE}\n{EXAMPLE}"), SecretError::Many),
        ] {
            let error = Secret::parse_all(text).expect_err(text);
            assert_eq!(error, expected);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        assert_eq!(format!("{:?}", Secret::parse(EXAMPLE).expect("a secret")), "Secret(…)");
    }
}
