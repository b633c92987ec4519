package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miniswarm/miniswarm/cluster"
)

// logged gives a store with a snapshot and a log whose last entry is a large one, and the offsets of the records of its last segment.
func logged(t *testing.T) (dir string, cfg Config, segment string, content []byte, records []int) {
	t.Helper()
	_, cfg = written(t, 130)
	g := newGroup(t, 1, func(c *Config) { c.Tick = 10e6 })
	m := g.start(cfg)
	g.leader()
	if _, err := m.Propose(t.Context(), &cluster.Txn{Changes: []cluster.Change{cluster.CreateOf(config("large", 1500))}}); err != nil {
		t.Fatal(err)
	}
	m.kill()
	cfg.Dir = m.dir
	segment = newest(t, cfg.Dir, "wal/*.wal")
	content, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; ; {
		_, next, ok := frame(content, at)
		if !ok {
			return cfg.Dir, cfg, segment, content, append(records, at)
		}
		records = append(records, at)
		at = next
	}
}

// memoryDir is a directory that costs nothing to sync, where there is one.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "raftstore")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// opened opens a copy of the directory with another content of one file, and gives the index its log ends at.
func opened(t *testing.T, cfg Config, file string, content []byte) (last uint64, err error) {
	t.Helper()
	from := cfg.Dir
	cfg.Dir = memoryDir(t)
	if err := os.CopyFS(cfg.Dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(cfg.Dir)
	rel, err := filepath.Rel(from, file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, rel), content, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(cfg)
	if err != nil {
		if !strings.Contains(err.Error(), cfg.Dir) {
			t.Errorf("the error does not name the directory: %v", err)
		}
		return 0, err
	}
	last, lerr := s.storage.LastIndex()
	return last, errors.Join(lerr, s.Close())
}

// A write that a crash cut short, anywhere: the store opens without it and with all before it (F3).
func TestATailTornAtAnyByteIsCutOff(t *testing.T) {
	_, cfg, segment, content, records := logged(t)
	whole, err := opened(t, cfg, segment, content)
	if err != nil {
		t.Fatal(err)
	}
	entry, end := records[len(records)-2], records[len(records)-1] // the last record, and its end
	if end-entry < 3*sectorSize {
		t.Fatalf("the last record is from %d to %d", entry, end)
	}
	step := 1
	if testing.Short() {
		step = 13
	}
	for at := entry; at < end; at += step {
		last, err := opened(t, cfg, segment, content[:at])
		if err != nil || last != whole-1 {
			t.Fatalf("a file that ends %d bytes into its last record: index %d of %d, %v", at-entry, last, whole, err)
		}
	}
	// Sectors reach the disk whole, in whatever order.
	for sector := (entry + frameHead + sectorSize - 1) / sectorSize * sectorSize; sector < end; sector += sectorSize {
		for _, rest := range []bool{false, true} {
			torn := slices.Clone(content)
			clear(torn[sector:min(sector+sectorSize, end)])
			if rest {
				clear(torn[sector:end])
			}
			last, err := opened(t, cfg, segment, torn)
			if err != nil || last != whole-1 {
				t.Errorf("without the sector at %d (and all after it: %v): index %d of %d, %v", sector, rest, last, whole, err)
			}
		}
	}
	// A record of which bytes are missing that no sector has to itself was damaged otherwise: it is named, or it is gone; nothing else.
	for at := entry + frameHead; at < end; at += 8 * step {
		torn := slices.Clone(content)
		clear(torn[at:end])
		if last, err := opened(t, cfg, segment, torn); err == nil && last != whole-1 && !bytes.Equal(torn, content) {
			t.Errorf("zeros from %d bytes into the last record on: index %d of %d", at-entry, last, whole)
		}
	}
}

// A flipped bit anywhere in log or snapshot is noticed, and the file named, and never mistaken for a torn write (F4).
func TestAFlippedBitIsNoticedEverywhere(t *testing.T) {
	_, cfg, segment, content, records := logged(t)
	whole, err := opened(t, cfg, segment, content)
	if err != nil {
		t.Fatal(err)
	}
	step := 1
	if testing.Short() {
		step = 5
	}
	flip := func(file string, content []byte, at int, bit uint, what string) {
		t.Helper()
		damaged := slices.Clone(content)
		damaged[at] ^= 1 << bit
		last, err := opened(t, cfg, file, damaged)
		if err == nil {
			t.Errorf("%s: bit %d at offset %d of %s was flipped: opened with index %d of %d", what, bit, at, filepath.Base(file), last, whole)
		} else if !strings.Contains(err.Error(), filepath.Base(file)) {
			t.Errorf("%s: bit %d at offset %d of %s was flipped: %v", what, bit, at, filepath.Base(file), err)
		}
	}
	for i, at := range records[:len(records)-1] {
		if i > 5 && i < len(records)-5 && i%(25*step) != 0 {
			continue
		}
		end, _, _ := frame(content, at)
		for bit := range uint(56) { // of the last byte only what tells the padding, which says nothing new
			if bit%3 == uint(i)%3 {
				flip(segment, content, at+int(bit/8), bit%8, fmt.Sprintf("length of record %d of %d", i, len(records)-1))
			}
		}
		for _, where := range []int{at + frameHead, at + frameHead + 2, (at + frameHead + end) / 2, end - 1} {
			flip(segment, content, where, uint(where)%8, fmt.Sprintf("content of record %d of %d", i, len(records)-1))
		}
	}
	snap := newest(t, cfg.Dir, "snap/*.snap")
	data, err := os.ReadFile(snap)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(data); at += 1 + len(data)/(150/step) {
		flip(snap, data, at, uint(at)%8, "snapshot")
	}
	for at := range len(snapMagic) + 8 { // what it begins with, and the head of its first chunk
		flip(snap, data, at, uint(at)%8, "snapshot")
	}
}
