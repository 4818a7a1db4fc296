//! Storage options that are Lance's own and not `object_store`'s: how often the HTTP client repeats what failed. They
//! have Lance's names, so that one set of options serves a table here and in Lance.

use std::collections::HashMap;
use std::time::Duration;

use object_store::RetryConfig;

/// Names are taken in any case, as Lance does.
const MAX_RETRIES: &str = "client_max_retries";
const RETRY_TIMEOUT: &str = "client_retry_timeout";
const DOWNLOAD_RETRIES: &str = "download_retry_count";

/// Lance's name of an option of `object_store`.
const S3_EXPRESS: (&str, &str) = ("s3_express", "aws_s3_express");

/// Limits of the client's own, hidden retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientOptions {
    /// Of one request. Few, because the log retries by itself and resolves what they blur.
    max_retries: usize,
    retry_timeout: Duration,
    /// Of a download that broke off, by Lance.
    pub(crate) download_retries: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self { max_retries: 2, retry_timeout: Duration::from_secs(20), download_retries: 3 }
    }
}

impl ClientOptions {
    /// Takes Lance's own options out; what is left is for `object_store`.
    pub(crate) fn take(options: &HashMap<String, String>) -> Result<(Self, HashMap<String, String>), String> {
        let mut own = Self::default();
        let mut rest = HashMap::with_capacity(options.len());
        for (name, value) in options {
            let number = || -> Result<u32, String> {
                value.trim().parse().map_err(|_| format!("the option `{name}` is `{value}`, not a whole number"))
            };
            match name.to_ascii_lowercase().as_str() {
                MAX_RETRIES => own.max_retries = number()? as usize,
                RETRY_TIMEOUT => own.retry_timeout = Duration::from_secs(number()?.into()),
                DOWNLOAD_RETRIES => own.download_retries = number()? as usize,
                name if name == S3_EXPRESS.0 => {
                    rest.insert(S3_EXPRESS.1.to_owned(), value.clone());
                }
                _ => {
                    rest.insert(name.clone(), value.clone());
                }
            }
        }
        Ok((own, rest))
    }

    pub(crate) fn retry_config(&self) -> RetryConfig {
        RetryConfig { max_retries: self.max_retries, retry_timeout: self.retry_timeout, ..RetryConfig::default() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn lances_own_options_are_taken_and_the_others_left() {
        let given = options(&[
            ("client_max_retries", "7"),
            ("Client_Retry_Timeout", "90"),
            ("download_retry_count", "5"),
            ("s3_express", "true"),
            ("aws_region", "eu-west-1"),
        ]);
        let (own, rest) = ClientOptions::take(&given).unwrap();
        let retry = own.retry_config();
        assert_eq!((retry.max_retries, retry.retry_timeout), (7, Duration::from_secs(90)));
        assert_eq!(own.download_retries, 5);
        assert_eq!(rest, options(&[("aws_s3_express", "true"), ("aws_region", "eu-west-1")]));
    }

    #[test]
    fn a_limit_that_is_no_number_is_refused_by_name() {
        let error = ClientOptions::take(&options(&[("client_max_retries", "many")])).unwrap_err();
        assert!(error.contains("`client_max_retries` is `many`"), "{error}");
    }
}
