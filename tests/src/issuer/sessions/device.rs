//! The device flow, RFC 8628: a code for the device, a question to the person, and the patience in between.

use serde_json::{Value, json};

use super::{Now, Refused, Sessions, Tokens, check_verifier, invalid_grant, refused};
use crate::issuer::claims::Grant;
use crate::issuer::keys::random_text;
use crate::issuer::realm::{Client, User};

pub(super) struct Device {
    client: String,
    user_code: String,
    challenge: Option<String>,
    openid: bool,
    expires_at: i64,
    interval: i64,
    last_poll: Option<i64>,
    answer: DeviceAnswer,
}

enum DeviceAnswer {
    Pending,
    Approved { username: String },
    Denied,
}

impl Sessions {
    /// The answer of the device endpoint.
    pub(in crate::issuer) fn start_device(
        &mut self,
        now: &Now<'_>,
        client: &Client,
        challenge: Option<String>,
        openid: bool,
    ) -> Value {
        let letters = random_text(64)
            .to_ascii_uppercase()
            .replace(|c: char| c.is_ascii_digit(), "");
        let user_code = format!("{}-{}", &letters[..4], &letters[4..8]);
        let device_code = random_text(43);
        self.devices.insert(
            device_code.clone(),
            Device {
                client: client.id.clone(),
                user_code: user_code.clone(),
                challenge,
                openid,
                expires_at: now.seconds + now.realm.device_lifespan,
                interval: now.realm.device_interval,
                last_poll: None,
                answer: DeviceAnswer::Pending,
            },
        );
        let page = format!("{}/device", now.iss);
        json!({
            "device_code": device_code,
            "user_code": user_code,
            "verification_uri": page,
            "verification_uri_complete": format!("{page}?user_code={user_code}"),
            "expires_in": now.realm.device_lifespan,
            "interval": now.realm.device_interval,
        })
    }

    /// The client that waits for this user code.
    pub(in crate::issuer) fn device_client(&self, now: &Now<'_>, user_code: &str) -> Option<&str> {
        let waits = |device: &&Device| {
            device.user_code == user_code
                && device.expires_at > now.seconds
                && matches!(device.answer, DeviceAnswer::Pending)
        };
        self.devices.values().find(waits).map(|device| device.client.as_str())
    }

    /// What the person at the page said; `None` is no.
    pub(in crate::issuer) fn answer_device(&mut self, user_code: &str, user: Option<&User>) {
        for device in self.devices.values_mut().filter(|device| device.user_code == user_code) {
            device.answer = match user {
                Some(user) => DeviceAnswer::Approved {
                    username: user.username.clone(),
                },
                None => DeviceAnswer::Denied,
            };
        }
    }

    pub(in crate::issuer) fn poll_device(
        &mut self,
        now: &Now<'_>,
        client: &Client,
        device_code: &str,
        verifier: Option<&str>,
    ) -> Result<Tokens, Refused> {
        let device = self
            .devices
            .get_mut(device_code)
            .filter(|device| device.client == client.id);
        let device = device.ok_or_else(|| invalid_grant("Device code not valid"))?;
        if device.expires_at <= now.seconds {
            return Err(refused("expired_token", "Device code is expired"));
        }
        let last = device.last_poll.replace(now.seconds);
        if last.is_some_and(|last| now.seconds - last < device.interval) {
            return Err(refused("slow_down", "Slow down"));
        }
        check_verifier(device.challenge.as_deref(), verifier)?;
        let (username, openid) = match &device.answer {
            DeviceAnswer::Pending => {
                return Err(refused(
                    "authorization_pending",
                    "The authorization request is still pending",
                ));
            }
            DeviceAnswer::Denied => {
                return Err(refused(
                    "access_denied",
                    "The end user denied the authorization request",
                ));
            }
            DeviceAnswer::Approved { username } => (username.clone(), device.openid),
        };
        self.devices.remove(device_code);
        let sid = self.start(now, &now.realm.users[&username], &client.id, None, openid);
        self.tokens(now, client, &sid, Grant::Device)
    }
}
