package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
)

// Rekey seals with key whatever is written from now on, and is back when nothing in Dir needs an older key any more: a
// snapshot has taken the place of what they had sealed. After an error it may be called again; until it has succeeded
// once, the older keys are needed to open the store. It works while Run does.
func (s *Store) Rekey(ctx context.Context, key []byte) error {
	work := appendWork{rekey: key, rekeyed: make(chan rekeyed, 1)}
	s.appends.push(work)
	c := &coverage{done: make(chan error, 1)}
	select {
	case r := <-work.rekeyed:
		if r.err != nil {
			return fmt.Errorf("change the key of the store: %w", r.err)
		}
		c.from = r.last
	case <-s.appendsDone:
		return fmt.Errorf("change the key of the store: %w", ErrStopped)
	case <-ctx.Done():
		return fmt.Errorf("change the key of the store: %w", context.Cause(ctx))
	}
	s.applies.push(applyWork{covered: c})
	select {
	case err := <-c.done:
		if err != nil {
			return fmt.Errorf("change the key of the store: %w", err)
		}
	case <-s.appliesDone:
		return fmt.Errorf("change the key of the store: %w", ErrStopped)
	case <-ctx.Done():
		return fmt.Errorf("change the key of the store: %w", context.Cause(ctx))
	}
	s.snapMu.Lock()
	defer s.snapMu.Unlock()
	snap, err := s.storage.MemoryStorage.Snapshot()
	if err != nil {
		return fmt.Errorf("change the key of the store: raft storage: %w", err)
	}
	at := snap.GetMetadata()
	if err := s.disk.reseal(at.GetTerm(), at.GetIndex()); err != nil {
		return fmt.Errorf("change the key of the store: %w", err)
	}
	return s.disk.purge(at.GetIndex(), 0)
}

// rekeyed is the answer of the appender: the last entry that was sealed with an older key.
type rekeyed struct {
	last uint64
	err  error
}

// useKey is called by the appender between two writes.
func (s *Store) useKey(key []byte) rekeyed {
	if err := s.disk.seal.use(key); err != nil {
		return rekeyed{err: err}
	}
	last, err := s.storage.LastIndex()
	return rekeyed{last, err}
}

// coverage is a wait for a stored snapshot at an index or after it. It ends with an error when a snapshot could not be written: who
// waits knows when to try again, and the applier would do so without a pause.
type coverage struct {
	from uint64
	done chan error // capacity 1; gets one value
}

// coverage ends the waits that are over and says whether a snapshot is to be taken for one of the others.
func (a *applier) coverage() bool {
	stored, wanted := a.s.snapshotIndex(), false
	left := a.coverages[:0]
	for _, c := range a.coverages {
		if stored >= c.from {
			c.done <- nil
			continue
		}
		left = append(left, c)
		wanted = wanted || a.index >= c.from
	}
	a.coverages = left
	return wanted
}

// reseal writes a snapshot anew that was sealed with an older key.
func (d *disk) reseal(term, index uint64) error {
	path := filepath.Join(snapDir(d.dir), snapshotName(term, index))
	r, err := openSnapshotFile(path, index, d.seal)
	if err != nil {
		return err
	}
	defer r.Close()
	chunk, err := r.Next()
	if err != nil || !r.older {
		return err
	}
	f, err := createSnapshotFile(snapDir(d.dir), term, index, d.seal)
	if err != nil {
		return err
	}
	for err == nil {
		if err = f.put(chunk, r.ended); err == nil {
			chunk, err = r.Next()
		}
	}
	if !errors.Is(err, io.EOF) {
		return errors.Join(err, f.abort())
	}
	return f.commit()
}
