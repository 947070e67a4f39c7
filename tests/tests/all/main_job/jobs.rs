//! Jobs of one service account: the same issuer, subject and client, and still not each other's (I8, S20).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kdbt_e2e::postgres::PgVersion;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Answer, Caller, Lease, shared};

const PROOF_HEADER: &str = "kdbt-owner-proof";

/// A job with a token of the service account and a proof of its own.
pub(super) struct Job {
    pub(super) caller: Caller,
    pub(super) proof: &'static str,
}

fn hash(proof: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(proof))
}

impl Job {
    pub(super) fn order(&self) -> Value {
        json!({ "target": "team", "ttl": "10m", "owner_proof": hash(self.proof) })
    }

    /// A call to `/v1/leases` and what follows, with this as the proof.
    pub(super) async fn call(&self, method: Method, rest: &str, proof: Option<&str>) -> Answer {
        let url = format!("{}/v1/leases{rest}", self.caller.url);
        let mut request = self.caller.http.request(method, url);
        if let Some(proof) = proof {
            request = request.header(PROOF_HEADER, proof);
        }
        self.caller.send(request).await.unwrap()
    }

    /// The ids that a list shows, with this as the proof.
    async fn listed(&self, proof: Option<&str>) -> Vec<String> {
        let list = self.call(Method::GET, "?limit=500", proof).await.expect(200).json();
        let ids = list["leases"].as_array().unwrap().iter();
        ids.map(|lease| lease["id"].as_str().unwrap().to_owned()).collect()
    }
}

/// S20
#[tokio::test]
async fn a_job_cannot_read_renew_cancel_or_end_the_lease_of_another_job_of_its_own_service_account() {
    for version in PgVersion::ALL {
        let stack = shared(version).await;
        let job = |proof| Job {
            caller: Caller::new(stack, stack.identity.played().service_token("kdbt-ci")),
            proof,
        };
        let (a, b) = (job("proof-of-job-a"), job("proof-of-job-b"));
        let (of_a, of_b) = (
            Lease::of(&a.caller.lease(&a.order()).await.expect(201).json()),
            Lease::of(&b.caller.lease(&b.order()).await.expect(201).json()),
        );
        let acts = |id: &str| {
            [
                (Method::GET, format!("/{id}")),
                (Method::POST, format!("/{id}/renew")),
                (Method::POST, format!("/{id}/cancel")),
                (Method::DELETE, format!("/{id}")),
            ]
        };
        let mut nowhere = of_b.id.clone();
        nowhere.replace_range(nowhere.len() - 6.., "000000");
        let session = of_b.connect(stack).await.unwrap();
        let (of_hash, id) = (hash(b.proof), of_b.id.clone());
        for proof in [
            None,
            Some(a.proof),
            Some(of_hash.as_str()),
            Some(id.as_str()),
            Some("proof-of-job-B"),
        ] {
            for ((method, path), (_, elsewhere)) in acts(&of_b.id).into_iter().zip(acts(&nowhere)) {
                let refused = a.call(method.clone(), &path, proof).await.expect(404).json();
                let unknown = a.call(method.clone(), &elsewhere, proof).await.expect(404).json();
                for member in ["code", "title", "detail", "hint"] {
                    assert_eq!(
                        refused[member], unknown[member],
                        "{method} {path}: it can be told from no lease"
                    );
                }
            }
            assert!(!a.listed(proof).await.contains(&of_b.id), "{proof:?}");
        }
        // All of the account's at once, or another's answer by its key: neither.
        a.caller
            .post("/v1/revocations", &json!({ "mine": true }))
            .await
            .expect(400);
        let subject = json!({ "subject": "service-account-kdbt-ci" });
        a.caller.post("/v1/revocations", &subject).await.expect(403);
        let keyed = async |job: &Job| {
            let request = job.caller.order(&job.order()).header("idempotency-key", "nightly");
            job.caller.send(request).await.unwrap()
        };
        let third = Lease::of(&keyed(&b).await.expect(201).json());
        keyed(&a).await.expect(422);
        // Somebody else with the stolen proof.
        let ada = Job {
            caller: Caller::person(stack, "ada"),
            proof: b.proof,
        };
        for (method, path) in acts(&of_b.id) {
            ada.call(method, &path, Some(b.proof)).await.expect(404);
        }

        session.batch_execute("SELECT 1").await.unwrap();
        assert_eq!(a.listed(Some(a.proof)).await, std::slice::from_ref(&of_a.id));
        for (method, path) in acts(&of_b.id) {
            let answer = b.call(method.clone(), &path, Some(b.proof)).await;
            assert!(
                matches!(answer.status.as_u16(), 200 | 202),
                "{method} {path}: {answer:?}"
            );
        }
        b.call(Method::DELETE, &format!("/{}", third.id), Some(b.proof)).await;
        a.call(Method::DELETE, &format!("/{}", of_a.id), Some(a.proof)).await;
    }
}
