package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"google.golang.org/protobuf/proto"
)

// A record that cannot be read at the end of the log is either what a crash left of a write that nobody was told of, and is cut
// off, or damage to what was acknowledged, and must not be. etcd's own judgement takes some damage for a torn write: a
// length with a flipped bit points behind what follows, and the few bytes that fill a record up to eight can be a sector of
// zeros. So its verdict is checked before anything is cut.
//
// A disk writes whole sectors, and a segment is made of zeros before it is written. Of a torn record, therefore, some sector is
// zero, or the file ends within it.

const (
	sectorSize = 512
	frameHead  = 8 // the length of a record, its highest byte telling the padding
)

// frame reads the head of the record at an offset: where its content ends, and where the next record begins. ok says whether the
// head is possible at all.
func frame(b []byte, at int) (end, next int, ok bool) {
	if at+frameHead > len(b) {
		return 0, 0, false
	}
	head := binary.LittleEndian.Uint64(b[at:])
	size, pad := head&(1<<56-1), head>>56
	if size == 0 || size > uint64(len(b)) || pad != 0 && pad&0xf8 != 0x80 {
		return 0, 0, false
	}
	end = at + frameHead + int(size)
	return end, end + int(pad&7), true
}

// readRecord reads the record whose content is b.
func readRecord(b []byte) (*walpb.Record, bool) {
	rec := &walpb.Record{}
	return rec, proto.Unmarshal(b, rec) == nil
}

// follows says whether the record continues the chain of checksums from crc on.
func follows(rec *walpb.Record, crc uint32) bool {
	return rec.GetType() != wal.CrcType && rec.Crc != nil && crc32.Update(crc, castagnoli, rec.Data) == rec.GetCrc()
}

// torn says whether the unreadable record at that offset of the last segment is the remains of a write that a crash cut short;
// crc is the checksum of all before it.
func torn(segment []byte, at int, crc uint32) bool {
	used := len(bytes.TrimRight(segment, "\x00"))
	if onlyHeadDamaged(segment, at, used, crc) {
		return false
	}
	end, next, ok := frame(segment, at)
	cut := at+frameHead > len(segment) || ok && next > len(segment)
	if next, more := resumes(segment, at+frameHead, used); more {
		end, cut = next, false
	}
	return cut || hasBlankSector(segment[:min(max(end, at), len(segment))], at)
}

// hidesOthers says whether the unreadable record at that offset was written whole, or others after it that are there.
func hidesOthers(segment []byte, at int, crc uint32) bool {
	used := len(bytes.TrimRight(segment, "\x00"))
	return onlyHeadDamaged(segment, at, used, crc) || endsEarly(segment, at)
}

// endsEarly says whether the log, which seems to end at that offset of the last segment, goes on behind something that is not a
// sector that was never written.
func endsEarly(segment []byte, at int) bool {
	next, more := resumes(segment, at, len(bytes.TrimRight(segment, "\x00")))
	return more && !hasBlankSector(segment[:next], at)
}

// blankFrom says whether a file has nothing but zeros from an offset on. It takes no memory: a log that ends as it should has
// tens of megabytes of them.
func blankFrom(name string, at int64) (bool, error) {
	f, err := os.Open(name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if _, err := f.Seek(at, io.SeekStart); err != nil {
		return false, err
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		if len(bytes.TrimLeft(buf[:n], "\x00")) > 0 {
			return false, nil
		}
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}

// onlyHeadDamaged says whether the content of the record at an offset is what was written: it continues the checksum if it ends
// where another record may begin, or the log ends.
func onlyHeadDamaged(b []byte, at, used int, crc uint32) bool {
	told, _, _ := frame(b, at)
	for next := (at + frameHead + 7) / 8 * 8; next < used+8; next += 8 {
		if end, _, ok := frame(b, next); next < used && (!ok || end >= used+8) {
			continue
		}
		for end := next; end > max(at+frameHead, next-8); end-- {
			if end > len(b) || end == told {
				continue
			}
			if rec, ok := readRecord(b[at+frameHead : end]); ok && follows(rec, crc) {
				return true
			}
		}
	}
	return false
}

// resumes finds the first two records after an offset of which the second continues the checksum of the first: so much does
// not come about by chance.
func resumes(b []byte, from, used int) (at int, ok bool) {
	for at := (from + 7) / 8 * 8; at < used; at += 8 {
		end, next, ok := frame(b, at)
		if !ok || end > used {
			continue
		}
		first, ok := readRecord(b[at+frameHead : end])
		if !ok || first.Crc == nil {
			continue
		}
		if end, _, ok = frame(b, next); !ok || end > len(b) {
			continue
		}
		if second, ok := readRecord(b[next+frameHead : end]); ok && follows(second, first.GetCrc()) {
			return at, true
		}
	}
	return 0, false
}

// hasBlankSector says whether some sector, or the part of one at either end, is zero from an offset on. The record's head does
// not count, and neither does what fills it up.
func hasBlankSector(b []byte, at int) bool {
	for begin := at + frameHead; begin < len(b); {
		end := min((begin/sectorSize+1)*sectorSize, len(b))
		if len(bytes.Trim(b[begin:end], "\x00")) == 0 {
			return true
		}
		begin = end
	}
	return false
}
