//! Whoever says "stop" while an order is under way wins (S15, I10): the order waits at a step, somebody says it, and the
//! order goes on.

use std::fs;
use std::time::Duration;

use kdbt_broker::failpoint::Point;
use kdbt_broker::store::sqlite::{AuditFilter, audit_rows};
use kdbt_e2e::fault::caller::{Answer, Caller};
use kdbt_e2e::fault::{Act, check, stack};
use kdbt_e2e::postgres::PgVersion;
use kdbt_e2e::stack::Stack;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// All steps of an order that a stop can come before, behind or between.
const STEPS: [Point; 7] = [
    Point::IssueDecided,
    Point::IssueBooked,
    Point::CreateConnected,
    Point::CreateOwnerReady,
    Point::CreateMade,
    Point::IssueCreated,
    Point::IssueActivated,
];

/// Who says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// An admin, of all that the person has.
    Admin,
    /// The person, of all that is theirs.
    Mine,
    /// The person, of this one, by the id that their list shows.
    This,
    /// The operator: the policy that is loaded gives the person nothing.
    Policy,
}

impl Stop {
    const ALL: [Self; 4] = [Self::Admin, Self::Mine, Self::This, Self::Policy];

    /// Whether it can be said of an order that stands there, and ends it.
    fn reaches(self, point: Point) -> bool {
        match self {
            // Nobody has heard of the lease yet.
            Self::This => point != Point::IssueDecided,
            // It was given before the policy was replaced, and lives to its end.
            Self::Policy => point != Point::IssueActivated,
            Self::Admin | Self::Mine => true,
        }
    }
}

/// A policy file that is replaced and put back.
struct Policy<'a> {
    stack: &'a Stack,
    good: String,
}

impl<'a> Policy<'a> {
    fn of(stack: &'a Stack) -> Self {
        let good = fs::read_to_string(stack.broker.policies().join("shop.yaml")).unwrap();
        Self { stack, good }
    }

    /// Returns when the broker has taken it.
    async fn load(&self, text: &str) {
        let broker = &self.stack.broker;
        let count = || broker.log().unwrap().matches("policy activated").count();
        let before = count();
        fs::write(broker.policies().join("shop.yaml"), text).unwrap();
        broker.signal(Signal::HUP).unwrap();
        let taken = async {
            while count() == before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), taken).await.unwrap();
    }
}

/// A person whom nobody else plays.
struct Person {
    subject: String,
    caller: Caller,
}

impl Person {
    fn new(stack: &Stack, name: &str) -> Self {
        let subject = format!("sub-{name}");
        let forged = stack.identity.played().forge("ada").claim("sub", subject.as_str());
        let token = forged.claim("preferred_username", name).token();
        let caller = Caller::new(stack.broker.url(), token).unwrap();
        Self { subject, caller }
    }

    async fn leases(&self) -> Vec<Value> {
        let answer = self.caller.get("/v1/leases").await.unwrap();
        answer.body["leases"].as_array().unwrap().clone()
    }

    /// Says it, and returns when it was heard; the answer may come later.
    async fn say(&self, stack: &Stack, policy: &Policy<'_>, stop: Stop) -> Option<JoinHandle<Answer>> {
        let (caller, path, body) = match stop {
            Stop::Admin => {
                let admin = Caller::person(stack, "adm").unwrap();
                (admin, "/v1/revocations", json!({ "subject": self.subject }))
            }
            Stop::Mine => (self.caller.clone(), "/v1/revocations", json!({ "mine": true })),
            Stop::This => {
                let id = self.leases().await[0]["id"].as_str().unwrap().to_owned();
                let caller = self.caller.clone();
                return Some(heard(async move { caller.revoke(&id).await.unwrap() }).await);
            }
            Stop::Policy => {
                policy.load(&policy.good.replace("[engineer]", "[nobody-has-it]")).await;
                return None;
            }
        };
        Some(heard(async move { caller.post(path, &body).await.unwrap() }).await)
    }
}

/// Sends it. It is answered in this time, or waits for the order.
async fn heard(request: impl Future<Output = Answer> + Send + 'static) -> JoinHandle<Answer> {
    let sent = tokio::spawn(request);
    for _ in 0..50 {
        if !sent.is_finished() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    sent
}

async fn stopped_at(stack: &Stack, point: Point, stop: Stop) {
    let case = format!("{stop:?} at {}", point.name());
    let policy = Policy::of(stack);
    let name = format!("{stop:?}{}", point.name())
        .to_lowercase()
        .replace(['.', '-'], "");
    let person = Person::new(stack, &name);
    let target = if point == Point::CreateOwnerReady {
        "dev"
    } else {
        "team"
    };

    let logged = stack.broker.log().unwrap().len();
    stack.broker.script(point, Act::Pause).unwrap();
    let caller = person.caller.clone();
    let order = tokio::spawn(async move { caller.order(&json!({ "target": target, "ttl": "10m" })).await });
    stack.broker.wait_at(point, logged).await.unwrap();
    let said = person.say(stack, &policy, stop).await;
    stack.broker.clear_script().unwrap();

    let answer = order.await.unwrap().unwrap();
    if let Some(said) = said {
        let said = said.await.unwrap();
        assert!(matches!(said.status, 200 | 202), "{case}: {said:?}");
    }
    let leases = person.leases().await;
    assert_eq!(leases.len(), 1, "{case}: {leases:?}");
    let state = leases[0]["state"].as_str().unwrap();
    assert!(matches!(state, "ending" | "ended"), "{case}: {answer:?}, {leases:?}");
    // There the lease was active before anybody spoke.
    if point != Point::IssueActivated {
        assert_eq!(
            (answer.status, &answer.body["code"]),
            (409, &json!("stopped")),
            "{case}: {answer:?}"
        );
        let filter = AuditFilter {
            lease: Some(leases[0]["id"].as_str().unwrap().parse().unwrap()),
            ..AuditFilter::default()
        };
        let store = stack.broker.store_file();
        let mut events = audit_rows(&store, filter).unwrap();
        let active = events.any(|row| row.as_ref().unwrap().1.details.get("to") == Some(&json!("active")));
        assert!(!active, "{case}: it was active");
    }
    if stop == Stop::Policy {
        policy.load(&policy.good).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_order_that_waits_at_any_step_becomes_active_when_somebody_says_stop() {
    let on = async |version| {
        let stack = stack(version).await.unwrap();
        for point in STEPS {
            for stop in Stop::ALL.into_iter().filter(|stop| stop.reaches(point)) {
                stopped_at(&stack, point, stop).await;
            }
        }
        check::empty(&stack, check::ONE_SWEEP).await.unwrap();
        check::audit(&stack, None).unwrap();
    };
    let [oldest, newest] = PgVersion::ALL;
    tokio::join!(on(oldest), on(newest));
}
