"""SyncTalk_2D: one person, lip-synced to any sound."""
