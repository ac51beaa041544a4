"""`relay cache verify`: what readers of the shared tier are given, compared with what is committed.

Three kinds of probes, each with a denominator of its own:

    event    an event of the topic names a version; looked at when each scale has passed
    entry    a record found by walking through Redis, and the version that the database has of it; the same
    read     a look at a record at a random moment, as a reader would look, judged by all versions known by then

A probe is a violation at a scale if a reader would be given less than what was *known to be committed* that long ago.
The count begins when the checker knows it, not when it was committed: so a violation is one for certain, whatever
clocks and long transactions do, and a relay that stands still shows in entries and reads, which ask the database. Each
suspect is confirmed by one read of the primary before it counts, and then followed until it is healed.

A record that is ahead of the database counts apart: the database has forgotten what it had committed, as after a
restore from a backup, and versions are given a second time.

Entries find what the others cannot: a change whose event was lost, or never written.
"""
