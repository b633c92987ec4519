package raftstore

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// A snapshot is a sequence of chunks, and a chunk a sequence of whole records:
//
//	record: type (1 byte), length (varint), content
//	type 1: snapshotMeta as JSON; the first record
//	type 2: kind (1 byte) and object
//	type 3: number of objects (varint); the last record
//
// In a file a chunk is its sealed length (4 bytes), the CRC-32C of the sealed bytes (4 bytes) and the sealed bytes, after
// [snapMagic]. A chunk's number, the index of the snapshot and whether it is the last are sealed with it. On the wire,
// inside TLS, a chunk is length, CRC-32C and the plain bytes, and a length of 0 ends the snapshot. Values that repeat
// between objects are written once per snapshot.
const (
	snapMagic     = "miniswarm snapshot 1\n"
	recordMeta    = 1
	recordObject  = 2
	recordEnd     = 3
	chunkSize     = 256 << 10
	maxChunk      = 128 << 20
	lastChunkFlag = 1 << 63
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// snapshotMeta is what a snapshot says besides the objects.
type snapshotMeta struct {
	Index, Term uint64
	Members     []protocol.Member
	// Removed are the raft ids of former members, the latest last.
	Removed []uint64 `json:",omitempty"`
	// Modified are the log indices at which each kind last changed, by the number of the kind.
	Modified map[cluster.Kind]uint64
}

func snapshotName(term, index uint64) string { return fmt.Sprintf("%016x-%016x.snap", term, index) }

func parseSnapshotName(name string) (term, index uint64, ok bool) {
	if _, err := fmt.Sscanf(name, "%016x-%016x.snap", &term, &index); err != nil {
		return 0, 0, false
	}
	return term, index, name == snapshotName(term, index)
}

// encodeSnapshot hands the chunks of a snapshot to put, in order; last marks the last one. A chunk is valid until put
// returns.
func encodeSnapshot(meta snapshotMeta, snap *cluster.Snapshot, put func(chunk []byte, last bool) error) error {
	e := &encoder{buf: make([]byte, 0, chunkSize+chunkSize/4)}
	head, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	e.buf = append(e.buf, recordMeta)
	e.string(string(head))
	count := uint64(0)
	scratch := &encoder{}
	for _, k := range cluster.Kinds() {
		p := objectPlans()[k]
		for o := range snap.Objects(k) {
			scratch.buf = append(scratch.buf[:0], byte(k))
			p.encode(scratch, elemOf(o))
			e.buf = append(e.buf, recordObject)
			e.uvarint(uint64(len(scratch.buf)))
			e.buf = append(e.buf, scratch.buf...)
			count++
			if len(e.buf) >= chunkSize {
				if err := put(e.buf, false); err != nil {
					return err
				}
				e.buf = e.buf[:0]
			}
		}
	}
	e.buf = append(e.buf, recordEnd)
	end := binary.AppendUvarint(nil, count)
	e.string(string(end))
	return put(e.buf, true)
}

// decodeSnapshot reads what encodeSnapshot wrote; next gives chunks until io.EOF.
func decodeSnapshot(next func() ([]byte, error)) (snapshotMeta, *cluster.State, error) {
	var meta snapshotMeta
	state := cluster.NewState()
	d := &decoder{pool: newInternPool()}
	count, begun, ended := uint64(0), false, false
	for {
		chunk, err := next()
		if errors.Is(err, io.EOF) && ended {
			state.RestoreIndex(meta.Index, meta.Modified)
			return meta, state, nil
		}
		if errors.Is(err, io.EOF) {
			return meta, nil, errShort
		}
		if err != nil {
			return meta, nil, err
		}
		d.data, d.off = chunk, 0
		for d.left() > 0 {
			if ended {
				return meta, nil, errors.New("a record follows the end")
			}
			kind, err := d.byte()
			if err != nil {
				return meta, nil, err
			}
			size, err := d.length()
			if err != nil {
				return meta, nil, err
			}
			content, err := d.take(size)
			if err != nil {
				return meta, nil, err
			}
			if begun == (kind == recordMeta) {
				return meta, nil, errors.New("the first record and no other describes the snapshot")
			}
			switch kind {
			case recordMeta:
				begun = true
				if err := json.Unmarshal(content, &meta); err != nil {
					return meta, nil, fmt.Errorf("description of the snapshot: %w", err)
				}
			case recordObject:
				o, err := d.record(content)
				if err != nil {
					return meta, nil, fmt.Errorf("object %d: %w", count+1, err)
				}
				state.Restore(o)
				count++
			case recordEnd:
				ended = true
				if n, _ := binary.Uvarint(content); n != count {
					return meta, nil, fmt.Errorf("%d objects, want %d", count, n)
				}
			default:
				return meta, nil, fmt.Errorf("record of type %d: written by a newer version of miniswarm", kind)
			}
		}
	}
}

// record decodes the content of an object record with the shared values of the whole snapshot.
func (d *decoder) record(content []byte) (cluster.Object, error) {
	outer, off := d.data, d.off
	defer func() { d.data, d.off = outer, off }()
	d.data, d.off = content, 0
	k, err := d.byte()
	if err != nil {
		return nil, err
	}
	o, err := d.object(cluster.Kind(k))
	if err == nil && d.left() != 0 {
		err = fmt.Errorf("%s %s: %d bytes too many", o.Kind(), o.ObjectID(), d.left())
	}
	return o, err
}

// snapshotFile writes a snapshot beside its final place and moves it there when it is whole and on disk.
type snapshotFile struct {
	f     *os.File
	w     *bufio.Writer
	seal  *sealer
	path  string
	index uint64
	n     uint64
	size  int64
}

// createSnapshotFile begins the file for the snapshot at that term and index in dir.
func createSnapshotFile(dir string, term, index uint64, seal *sealer) (*snapshotFile, error) {
	path := filepath.Join(dir, snapshotName(term, index))
	f, err := os.CreateTemp(dir, "*.tmp")
	if err != nil {
		return nil, fmt.Errorf("create snapshot: %w", err)
	}
	s := &snapshotFile{f: f, w: bufio.NewWriterSize(f, 128<<10), seal: seal.fixed(), path: path, index: index}
	if _, err := s.w.WriteString(snapMagic); err != nil {
		return nil, errors.Join(err, s.abort())
	}
	s.size = int64(len(snapMagic))
	return s, nil
}

func (s *snapshotFile) put(chunk []byte, last bool) error {
	n := s.n
	if last {
		n |= lastChunkFlag
	}
	sealed := s.seal.seal(chunk, place(sealChunk, s.index, n))
	s.n++
	s.size += int64(8 + len(sealed))
	if err := writeChunk(s.w, sealed); err != nil {
		return fmt.Errorf("write snapshot %s: %w", s.path, err)
	}
	return nil
}

// commit makes the file durable under its name. Whatever fails, the temporary file is gone afterwards.
func (s *snapshotFile) commit() error {
	err := s.w.Flush()
	if err == nil {
		err = s.f.Sync()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write snapshot %s: %w", s.path, err), s.abort())
	}
	if err := s.f.Close(); err != nil {
		return errors.Join(fmt.Errorf("write snapshot %s: %w", s.path, err), os.Remove(s.f.Name()))
	}
	if err := os.Rename(s.f.Name(), s.path); err != nil {
		return errors.Join(fmt.Errorf("write snapshot: %w", err), os.Remove(s.f.Name()))
	}
	return syncDir(filepath.Dir(s.path))
}

func (s *snapshotFile) abort() error { return errors.Join(s.f.Close(), os.Remove(s.f.Name())) }

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// snapshotReader gives the plain chunks of a snapshot file. Errors name the file and the offset.
type snapshotReader struct {
	f      *os.File
	r      *bufio.Reader
	seal   *sealer
	path   string
	index  uint64
	n      uint64
	offset int64
	ended  bool
	older  bool // the last chunk was not sealed with the newest key
}

func openSnapshotFile(path string, index uint64, seal *sealer) (*snapshotReader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open snapshot: %w", err)
	}
	s := &snapshotReader{f: f, r: bufio.NewReaderSize(f, 128<<10), seal: seal, path: path, index: index}
	magic := make([]byte, len(snapMagic))
	if _, err := io.ReadFull(s.r, magic); err != nil || string(magic) != snapMagic {
		f.Close()
		return nil, fmt.Errorf("open snapshot: %s does not begin as a snapshot of this version of miniswarm", path)
	}
	s.offset = int64(len(snapMagic))
	return s, nil
}

// Next gives the next chunk, or io.EOF after the last.
func (s *snapshotReader) Next() ([]byte, error) {
	if s.ended {
		return nil, io.EOF
	}
	chunk, size, err := s.read()
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: chunk %d at offset %d: %w", s.path, s.n, s.offset, err)
	}
	s.n++
	s.offset += size
	return chunk, nil
}

func (s *snapshotReader) read() ([]byte, int64, error) {
	sealed, err := readChunk(s.r)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, 0, err
	}
	if len(sealed) == 0 {
		return nil, 0, errors.New("is empty")
	}
	chunk, newest, err := s.seal.openAny(sealed, place(sealChunk, s.index, s.n))
	if err != nil {
		chunk, newest, err = s.seal.openAny(sealed, place(sealChunk, s.index, s.n|lastChunkFlag))
		s.ended = err == nil
	}
	s.older = !newest
	return chunk, int64(8 + len(sealed)), err
}

// Close closes the file.
func (s *snapshotReader) Close() error { return s.f.Close() }

// writeChunk frames a chunk with its length and checksum.
func writeChunk(w io.Writer, chunk []byte) error {
	var head [8]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(chunk)))
	binary.BigEndian.PutUint32(head[4:], crc32.Checksum(chunk, castagnoli))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err := w.Write(chunk)
	return err
}

// readChunk reads what writeChunk wrote; io.EOF if there is nothing more.
func readChunk(r io.Reader) ([]byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxChunk {
		return nil, fmt.Errorf("length %d is beyond the limit of %d", size, maxChunk)
	}
	chunk := make([]byte, size)
	if _, err := io.ReadFull(r, chunk); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	if sum := crc32.Checksum(chunk, castagnoli); sum != binary.BigEndian.Uint32(head[4:]) {
		return nil, fmt.Errorf("checksum is %08x, want %08x", sum, binary.BigEndian.Uint32(head[4:]))
	}
	return chunk, nil
}

// loadSnapshot reads a whole snapshot file.
func loadSnapshot(dir string, term, index uint64, seal *sealer) (snapshotMeta, *cluster.State, error) {
	path := filepath.Join(dir, snapshotName(term, index))
	r, err := openSnapshotFile(path, index, seal)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: it is the newest in %s, so one of the two is damaged; remove this manager and join it again", err, walDir(filepath.Dir(dir)))
	}
	if err != nil {
		return snapshotMeta{}, nil, err
	}
	defer r.Close()
	meta, state, err := decodeSnapshot(r.Next)
	if err == nil && (meta.Index != index || meta.Term != term) {
		err = fmt.Errorf("holds index %d of term %d", meta.Index, meta.Term)
	}
	if err != nil {
		return meta, nil, fmt.Errorf("read snapshot %s before offset %d: %w", path, r.offset, err)
	}
	return meta, state, nil
}
