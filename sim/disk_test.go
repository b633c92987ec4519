package sim

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"

	"github.com/miniswarm/miniswarm/raftstore"
)

// disk is the machine's disk under the store: real files, with the faults of real disks. What a killed store leaves is copied,
// and the copy may lack what was being written; the next life begins with it.
type disk struct {
	h         *host
	dir       string // changes only while no store runs
	powerless atomic.Bool

	mu   sync.Mutex // guards all below
	rand *rand.Rand
	slow time.Duration // every sync takes up to so long
	full bool          // writes fail
	sick bool          // the next sync fails
	// crashAt kills the daemon when it comes to the point for the countdown-th time.
	crashAt   raftstore.Point
	countdown int
	// tear lets the sectors of the write in progress reach the disk only in part when it crashes.
	tear   bool
	before position
	// real is how far the log really was on disk when a lying disk last told the truth, at realAt.
	real   position
	realAt time.Time
	copies int
}

// position is the end of what is in the log.
type position struct {
	segment string
	offset  int64
}

func (d *disk) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

// at is called by the store at its points.
func (d *disk) at(p raftstore.Point) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p == raftstore.Append && d.h.w.broken.lyingDisk && (d.real == position{} || time.Since(d.realAt) > lie) {
		d.real, d.realAt = logEnd(d.dir), time.Now()
	}
	if p == raftstore.Append && d.crashAt == raftstore.Appended && d.countdown == 1 && d.tear {
		d.before = logEnd(d.dir)
	}
	if d.crashAt == p {
		if d.countdown--; d.countdown <= 0 {
			d.crashAt = ""
			d.h.w.trace("%s: dies at %q", d.h, p)
			return raftstore.ErrCrash
		}
	}
	switch {
	case p == raftstore.Append && d.full:
		return syscall.ENOSPC
	case p == raftstore.Appended && d.sick:
		d.sick = false
		return syscall.EIO
	case p == raftstore.Append && d.slow > 0:
		nap := time.Duration(d.rand.Int64N(int64(d.slow)))
		d.mu.Unlock()
		time.Sleep(nap)
		d.mu.Lock()
	}
	return nil
}

// holds says whether there is a store.
func (d *disk) holds() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return raftstore.Exists(d.dir)
}

// lie is how long a lying disk keeps what it says it has written.
const lie = 3 * time.Second

// crashed keeps what a killed store leaves.
func (d *disk) crashed() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.copies++
	next := filepath.Join(d.h.w.dir, fmt.Sprintf("%s-store-%d", d.h, d.copies))
	if err := os.CopyFS(next, os.DirFS(d.dir)); err != nil {
		d.h.w.violate("%s: copy the disk: %v", d.h, err)
		return
	}
	end := logEnd(next)
	switch from := d.before; {
	case d.h.w.broken.lyingDisk && d.real != position{}:
		d.lose(next, d.real)
	case d.tear && from.segment == end.segment && end.offset > from.offset:
		at := from.offset + d.rand.Int64N(end.offset-from.offset)
		if at = at / 512 * 512; at > from.offset { // sectors are written whole
			d.h.w.trace("%s: the last write is torn at byte %d of %d to %d", d.h, at, from.offset, end.offset)
			d.lose(next, position{end.segment, at})
		}
	}
	d.tear, d.before, d.real, d.crashAt = false, position{}, position{}, ""
	old := d.dir
	d.dir = next
	if err := os.RemoveAll(old); err != nil {
		d.h.w.violate("%s: %v", d.h, err)
	}
}

// lose makes the log in dir end at a position, as if nothing had been written after it.
func (d *disk) lose(dir string, from position) {
	for _, name := range segments(dir) {
		path := filepath.Join(dir, "wal", name)
		var err error
		switch {
		case name > from.segment:
			err = os.Remove(path)
		case name == from.segment:
			var b []byte
			if b, err = os.ReadFile(path); err == nil {
				clear(b[from.offset:])
				err = os.WriteFile(path, b, 0o600)
			}
		}
		if err != nil {
			d.h.w.violate("%s: lose what was not synced: %v", d.h, err)
		}
	}
}

func segments(dir string) []string {
	all, _ := filepath.Glob(filepath.Join(dir, "wal", "*.wal"))
	for i := range all {
		all[i] = filepath.Base(all[i])
	}
	slices.Sort(all)
	return all
}

// logEnd is the end of the last whole record of the log in dir.
func logEnd(dir string) position {
	all := segments(dir)
	if len(all) == 0 {
		return position{}
	}
	last := all[len(all)-1]
	f, err := os.Open(filepath.Join(dir, "wal", last))
	if err != nil {
		return position{}
	}
	defer f.Close()
	dec := wal.NewDecoder(fileutil.NewFileReader(f))
	for rec := (&walpb.Record{}); ; {
		if err := dec.Decode(rec); err != nil {
			if !errors.Is(err, io.EOF) {
				return position{}
			}
			return position{last, dec.LastOffset()}
		}
		if rec.GetType() == wal.CrcType {
			dec.UpdateCRC(rec.GetCrc())
		}
	}
}
