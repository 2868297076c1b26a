-- What a review may also come to: a first approval of two, a proposal that a reviewer replaced by striking points out of
-- it, a reminder, and a proposal that nobody decided on in time.

INSERT INTO states VALUES ('endorsed'), ('superseded'), ('reminded'), ('expired');
