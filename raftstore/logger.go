package raftstore

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// hexID writes a raft id as raft itself does in its messages.
func hexID(id uint64) string { return strconv.FormatUint(id, 16) }

// raftLogger hands etcd's raft messages to slog. What raft finds worth telling about elections is Debug here: the store
// itself reports changes of role and membership.
type raftLogger struct{ log *slog.Logger }

func (l raftLogger) at(level slog.Level, text string) {
	l.log.Log(context.Background(), level, "raft", "detail", text)
}

func (l raftLogger) Debug(v ...any)            { l.at(slog.LevelDebug, fmt.Sprint(v...)) }
func (l raftLogger) Info(v ...any)             { l.at(slog.LevelDebug, fmt.Sprint(v...)) }
func (l raftLogger) Warning(v ...any)          { l.at(slog.LevelWarn, fmt.Sprint(v...)) }
func (l raftLogger) Error(v ...any)            { l.at(slog.LevelWarn, fmt.Sprint(v...)) }
func (l raftLogger) Infof(f string, v ...any)  { l.format(slog.LevelDebug, f, v) }
func (l raftLogger) Errorf(f string, v ...any) { l.format(slog.LevelWarn, f, v) }
func (l raftLogger) Debugf(f string, v ...any) { l.format(slog.LevelDebug, f, v) }

func (l raftLogger) Warningf(f string, v ...any) { l.format(slog.LevelWarn, f, v) }

func (l raftLogger) format(level slog.Level, f string, v []any) {
	if l.log.Enabled(context.Background(), level) {
		l.at(level, fmt.Sprintf(f, v...))
	}
}

// Fatal and Panic are called where raft finds its own state impossible; going on would damage the log. The loop turns the
// panic into the end of the store.

func (l raftLogger) Fatal(v ...any)            { panic(impossible(fmt.Sprint(v...))) }
func (l raftLogger) Fatalf(f string, v ...any) { panic(impossible(fmt.Sprintf(f, v...))) }
func (l raftLogger) Panic(v ...any)            { panic(impossible(fmt.Sprint(v...))) }
func (l raftLogger) Panicf(f string, v ...any) { panic(impossible(fmt.Sprintf(f, v...))) }

// impossible is what raft says of a state that it should never be in.
type impossible string

func (e impossible) Error() string {
	return "raft finds the log of this manager impossible, as when its disk has lost writes or was put back to an earlier day: " + string(e) +
		"; remove this manager from the cluster and join it again"
}

// walLogger gives the write-ahead log a zap logger that ends in slog. Only warnings pass: slow disks, repairs.
func walLogger(log *slog.Logger) *zap.Logger {
	return zap.New(&zapCore{log: log, LevelEnabler: zapcore.WarnLevel})
}

type zapCore struct {
	zapcore.LevelEnabler
	log *slog.Logger
}

func (c *zapCore) With([]zapcore.Field) zapcore.Core { return c }
func (c *zapCore) Sync() error                       { return nil }

func (c *zapCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	c.log.Warn("write-ahead log", "detail", e.Message, "fields", enc.Fields)
	return nil
}
