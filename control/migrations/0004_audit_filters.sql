-- The audit log grows for as long as the service lives; it is looked through by who, what, about what, and when. Each index has `seq`, which
-- is the row's own number, behind its column: so entries come newest first without being sorted.
CREATE INDEX audit_who ON audit (who);
CREATE INDEX audit_action ON audit (action);
CREATE INDEX audit_subject ON audit (subject);
CREATE INDEX audit_at ON audit (at);
