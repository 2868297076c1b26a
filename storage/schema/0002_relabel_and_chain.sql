-- Relabelings; states as rows, so that adding one is a row; links of the hash chain (storage/chain.py fills them in).
-- Check constraints cannot be altered, so events, proposal_rows and actions are made anew; sequence numbers stay.
-- An action has no key but its number: a roll-back may repeat in its cycle what an earlier one did (a label set back).

CREATE TABLE states (state VARCHAR PRIMARY KEY);
INSERT INTO states VALUES
    ('opened'), ('moved'), ('trained'), ('dropped'), ('scored'), ('proposed'), ('approved'), ('rejected'), ('applied'),
    ('retrained'), ('judged'), ('promoted'), ('rolled_back'), ('nothing_to_do'), ('awaiting_review'), ('failed');

CREATE TEMP TABLE old_events AS FROM events;
DROP TABLE events;
CREATE TABLE events (
    seq         BIGINT PRIMARY KEY DEFAULT nextval('ledger_seq'),
    cycle       INTEGER NOT NULL REFERENCES cycles (cycle),
    state       VARCHAR NOT NULL REFERENCES states (state),
    key         VARCHAR NOT NULL,
    actor       VARCHAR NOT NULL CHECK (actor <> ''),
    event_at    TIMESTAMP NOT NULL,
    detail_json VARCHAR NOT NULL,
    UNIQUE (cycle, state, key)
);
INSERT INTO events BY NAME FROM old_events ORDER BY seq;
DROP TABLE old_events;

CREATE TEMP TABLE old_rows AS FROM proposal_rows;
DROP TABLE proposal_rows;
CREATE TABLE proposal_rows (
    cycle     INTEGER NOT NULL,
    hash      VARCHAR NOT NULL,
    point_id  VARCHAR NOT NULL,
    action    VARCHAR NOT NULL CHECK (action IN ('remove', 'relabel', 'restore')),
    new_label INTEGER CHECK ((new_label IS NOT NULL) = (action = 'relabel')),
    reason    VARCHAR NOT NULL,
    score     DOUBLE,
    threshold DOUBLE,
    PRIMARY KEY (cycle, hash, point_id),
    FOREIGN KEY (cycle, hash) REFERENCES proposals (cycle, hash)
);
INSERT INTO proposal_rows BY NAME FROM old_rows ORDER BY cycle, hash, point_id;
DROP TABLE old_rows;

CREATE TEMP TABLE old_actions AS FROM actions;
DROP TABLE actions;
CREATE TABLE actions (
    seq               BIGINT PRIMARY KEY DEFAULT nextval('ledger_seq'),
    cycle             INTEGER NOT NULL REFERENCES cycles (cycle),
    point_id          VARCHAR NOT NULL,
    action            VARCHAR NOT NULL CHECK (action IN ('remove', 'relabel', 'restore')),
    new_label         INTEGER CHECK ((new_label IS NOT NULL) = (action = 'relabel')),
    reason            VARCHAR NOT NULL,
    score             DOUBLE,
    threshold         DOUBLE,
    estimator         VARCHAR,
    checkpoint_digest VARCHAR,
    proposal          VARCHAR,
    actor             VARCHAR NOT NULL CHECK (actor <> ''),
    content           VARCHAR NOT NULL,
    event_at          TIMESTAMP NOT NULL
);
INSERT INTO actions BY NAME FROM old_actions ORDER BY seq;
DROP TABLE old_actions;

CREATE TABLE chain (
    seq    BIGINT NOT NULL,
    name   VARCHAR NOT NULL,
    key    VARCHAR NOT NULL,
    sha256 VARCHAR NOT NULL
);

CREATE MACRO newest_as_of(last_cycle) AS TABLE
    FROM actions
    SEMI JOIN (SELECT max(seq) AS seq FROM actions WHERE cycle <= last_cycle GROUP BY point_id) newest USING (seq);
CREATE OR REPLACE MACRO removed_as_of(last_cycle) AS TABLE FROM newest_as_of(last_cycle) WHERE action = 'remove';
CREATE MACRO relabeled_as_of(last_cycle) AS TABLE FROM newest_as_of(last_cycle) WHERE action = 'relabel';
