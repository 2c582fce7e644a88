//! What the node joins with: one thing, and for a service account token whom it may be shown to.

use std::path::{Path, PathBuf};

use shoal_base::config::Faults;

use super::RawControl;
use crate::control::{Authority, JoinBy};

pub(super) fn checked(raw: &RawControl, faults: &mut Faults) -> Option<JoinBy> {
    let given = |path: &Path| -> Option<PathBuf> { (!path.as_os_str().is_empty()).then(|| path.to_owned()) };
    let sha256 = Some(raw.ca_sha256.trim()).filter(|text| !text.is_empty()).and_then(|text| {
        let mut pin = [0; 32];
        let read = hex::decode_to_slice(text, &mut pin).map(|()| Authority::Sha256(pin));
        faults.take("control.ca_sha256", read.map_err(|_| "is not a SHA-256 in hex, 64 digits"))
    });
    let is_hash_given = !raw.ca_sha256.trim().is_empty();
    let file = given(&raw.ca_file).map(Authority::File);
    if file.is_some() && is_hash_given {
        faults.push("control.ca_sha256", "says the same as control.ca_file; leave one of them out");
    }
    let authority = file.or(sha256);
    match (given(&raw.join_token_file), given(&raw.service_account_token_file)) {
        (Some(_), Some(_)) => {
            faults.push("control.service_account_token_file", "is there beside control.join_token_file; leave one out");
            None
        }
        (None, Some(token)) => match authority {
            Some(authority) => Some(JoinBy::ServiceAccount { token, authority }),
            None if is_hash_given => None,
            None => {
                let why = "is missing, and so is control.ca_sha256: a service account token does not say which control may see it";
                faults.push("control.ca_file", why);
                None
            }
        },
        (token, None) => {
            // Whoever sets these believes that they count.
            for (key, is_given) in
                [("control.ca_file", given(&raw.ca_file).is_some()), ("control.ca_sha256", is_hash_given)]
            {
                if is_given {
                    faults.push(
                        key,
                        "is read only with control.service_account_token_file; a join token names the authority itself",
                    );
                }
            }
            token.map(JoinBy::Token)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(sets: &[(&str, &str)]) -> Result<Option<JoinBy>, Vec<String>> {
        let mut raw = RawControl::default();
        for (key, value) in sets {
            match *key {
                "join_token_file" => raw.join_token_file = value.into(),
                "service_account_token_file" => raw.service_account_token_file = value.into(),
                "ca_file" => raw.ca_file = value.into(),
                _ => raw.ca_sha256 = (*value).into(),
            }
        }
        let mut faults = Faults::default();
        let by = checked(&raw, &mut faults);
        if faults.is_empty() { Ok(by) } else { Err(faults.iter().map(|fault| fault.key.clone()).collect()) }
    }

    #[test]
    fn a_service_account_token_needs_to_know_whom_it_may_be_shown_to() {
        let account = ("service_account_token_file", "/t");
        assert_eq!(join(&[account]), Err(vec!["control.ca_file".into()]));
        let authority = |authority| Ok(Some(JoinBy::ServiceAccount { token: "/t".into(), authority }));
        assert_eq!(join(&[account, ("ca_file", "/ca")]), authority(Authority::File("/ca".into())));
        let hex = "0a".repeat(32);
        assert_eq!(join(&[account, ("ca_sha256", &hex)]), authority(Authority::Sha256([10; 32])));
        assert_eq!(join(&[account, ("ca_sha256", "0a")]), Err(vec!["control.ca_sha256".into()]));
    }

    #[test]
    fn two_ways_to_join_or_what_goes_with_none_are_refused() {
        assert_eq!(join(&[]), Ok(None));
        let token = ("join_token_file", "/j");
        assert_eq!(join(&[token]), Ok(Some(JoinBy::Token("/j".into()))));
        assert_eq!(join(&[token, ("ca_file", "/ca")]), Err(vec!["control.ca_file".into()]));
        let account = ("service_account_token_file", "/t");
        let both = join(&[token, account, ("ca_file", "/ca")]);
        assert_eq!(both, Err(vec!["control.service_account_token_file".into()]));
        let twice = join(&[account, ("ca_file", "/ca"), ("ca_sha256", &"0a".repeat(32))]);
        assert_eq!(twice, Err(vec!["control.ca_sha256".into()]));
    }
}
