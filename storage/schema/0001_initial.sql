-- The ledger: append-only. Order is the sequence, never the clock or the cycle number.
-- Point ids are text (storage.points.id_text); JSON is canonical text; times are UTC.
-- Plain SQL for DuckDB 1.5 and 2.0.

CREATE SEQUENCE ledger_seq;

CREATE TABLE cycles (
    cycle          INTEGER PRIMARY KEY CHECK (cycle >= 1),
    parent         INTEGER REFERENCES cycles (cycle),
    dataset_sha256 VARCHAR NOT NULL,
    config_json    VARCHAR NOT NULL,
    versions_json  VARCHAR NOT NULL,
    id_kind        VARCHAR NOT NULL CHECK (id_kind IN ('int', 'string')),
    mlflow_run_id  VARCHAR,
    started_at     TIMESTAMP NOT NULL
);

CREATE TABLE events (
    seq         BIGINT PRIMARY KEY DEFAULT nextval('ledger_seq'),
    cycle       INTEGER NOT NULL REFERENCES cycles (cycle),
    state       VARCHAR NOT NULL CHECK (state IN (
        'opened', 'trained', 'scored', 'proposed', 'approved', 'rejected', 'applied', 'retrained', 'judged',
        'promoted', 'rolled_back', 'nothing_to_do', 'awaiting_review', 'failed')),
    key         VARCHAR NOT NULL,
    actor       VARCHAR NOT NULL CHECK (actor <> ''),
    event_at    TIMESTAMP NOT NULL,
    detail_json VARCHAR NOT NULL,
    UNIQUE (cycle, state, key)
);

CREATE TABLE proposals (
    seq            BIGINT NOT NULL DEFAULT nextval('ledger_seq'),
    cycle          INTEGER NOT NULL REFERENCES cycles (cycle),
    hash           VARCHAR NOT NULL CHECK (length(hash) = 64),
    dataset_sha256 VARCHAR NOT NULL,
    scores_sha256  VARCHAR NOT NULL,
    policy_json    VARCHAR NOT NULL,
    size           BIGINT NOT NULL,
    proposed_at    TIMESTAMP NOT NULL,
    PRIMARY KEY (cycle, hash)
);

CREATE TABLE proposal_rows (
    cycle     INTEGER NOT NULL,
    hash      VARCHAR NOT NULL,
    point_id  VARCHAR NOT NULL,
    action    VARCHAR NOT NULL CHECK (action IN ('remove', 'restore')),
    reason    VARCHAR NOT NULL,
    score     DOUBLE,
    threshold DOUBLE,
    PRIMARY KEY (cycle, hash, point_id),
    FOREIGN KEY (cycle, hash) REFERENCES proposals (cycle, hash)
);

CREATE TABLE reviews (
    seq      BIGINT NOT NULL DEFAULT nextval('ledger_seq'),
    cycle    INTEGER NOT NULL,
    hash     VARCHAR NOT NULL,
    decision VARCHAR NOT NULL CHECK (decision IN ('approve', 'reject')),
    actor    VARCHAR NOT NULL CHECK (actor <> ''),
    how      VARCHAR NOT NULL CHECK (how <> ''),
    reason   VARCHAR NOT NULL,
    event_at TIMESTAMP NOT NULL,
    PRIMARY KEY (cycle, hash),
    FOREIGN KEY (cycle, hash) REFERENCES proposals (cycle, hash)
);

CREATE TABLE actions (
    seq               BIGINT NOT NULL DEFAULT nextval('ledger_seq'),
    cycle             INTEGER NOT NULL REFERENCES cycles (cycle),
    point_id          VARCHAR NOT NULL,
    action            VARCHAR NOT NULL CHECK (action IN ('remove', 'restore')),
    reason            VARCHAR NOT NULL,
    score             DOUBLE,
    threshold         DOUBLE,
    estimator         VARCHAR,
    checkpoint_digest VARCHAR,
    proposal          VARCHAR,
    actor             VARCHAR NOT NULL CHECK (actor <> ''),
    content           VARCHAR NOT NULL,
    event_at          TIMESTAMP NOT NULL,
    PRIMARY KEY (cycle, point_id, action)
);

CREATE MACRO removed_as_of(last_cycle) AS TABLE
    SELECT point_id, max(seq) AS seq, arg_max(content, seq) AS content, arg_max(cycle, seq) AS cycle
    FROM actions WHERE cycle <= last_cycle
    GROUP BY point_id HAVING arg_max(action, seq) = 'remove';
