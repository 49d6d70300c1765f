-- A rollout.sqlite as the first release wrote it.
BEGIN TRANSACTION;
CREATE TABLE deployments (
	deployment_id VARCHAR NOT NULL, 
	targets JSON NOT NULL, 
	state VARCHAR NOT NULL, 
	message VARCHAR NOT NULL, 
	create_time INTEGER NOT NULL, 
	update_time INTEGER NOT NULL, 
	revision INTEGER NOT NULL, 
	PRIMARY KEY (deployment_id)
);
INSERT INTO "deployments" VALUES('a','[{"version": "models/m/versions/1", "weight": 10}]','pending','no inference replica has reported on it yet',1714979289123456,1714979289123456,1);
CREATE TABLE events (
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	deployment_id VARCHAR NOT NULL, 
	time INTEGER NOT NULL, 
	action VARCHAR NOT NULL, 
	targets_before JSON NOT NULL, 
	targets_after JSON NOT NULL, 
	actor VARCHAR NOT NULL, 
	reason VARCHAR NOT NULL
);
INSERT INTO "events" VALUES(1,'a',1714979289123456,'created','[{"version": "models/m/versions/1", "weight": 10}]','[{"version": "models/m/versions/2", "weight": 20}, {"version": "models/m/versions/1", "weight": 10}]','ann','for "ü"');
CREATE TABLE history (
	id INTEGER NOT NULL, 
	store VARCHAR NOT NULL, 
	revision INTEGER NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "history" VALUES(1,'first',1);
CREATE TABLE schema_version (
	version INTEGER NOT NULL
);
INSERT INTO "schema_version" VALUES(1);
CREATE TABLE tombstones (
	deployment_id VARCHAR NOT NULL, 
	revision INTEGER NOT NULL, 
	PRIMARY KEY (deployment_id)
);
CREATE INDEX ix_deployments_revision ON deployments (revision);
CREATE INDEX ix_tombstones_revision ON tombstones (revision);
CREATE INDEX events_of_deployment ON events (deployment_id, number);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('events',1);
COMMIT;
