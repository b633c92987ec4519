package probe

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzPackets hands over what anybody may send to the port of the probes: as it is, and as one who has the cluster's key would sign
// it. What is accepted says the same when it is written again.
func FuzzPackets(f *testing.F) {
	key := []byte("cluster")
	f.Add(message{kind: answer, recognises: true, nonce: 42}.marshal(key, a, b))
	f.Add(message{kind: question, nonce: 1}.marshal(key, b, a))
	f.Add([]byte(magic + "\x09\x02nonsense"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, packet []byte) {
		for _, p := range [][]byte{packet, append(packet[:len(packet):len(packet)], sign(key, packet, a, b)...)} {
			m, err := unmarshal(p, key, a, b)
			if err != nil {
				continue
			}
			if again, err := unmarshal(m.marshal(key, a, b), key, a, b); err != nil || again != m {
				t.Errorf("%x is %+v, and written again %+v, %v", p, m, again, err)
			}
			if _, err := unmarshal(p, key, b, a); err == nil {
				t.Errorf("%x is accepted from its receiver", p)
			}
		}
	})
}

// FuzzControlMessages reads what comes beside a datagram.
func FuzzControlMessages(f *testing.F) {
	info := binary.NativeEndian.AppendUint64(nil, 28)
	info = binary.NativeEndian.AppendUint32(info, unix.IPPROTO_IP)
	info = binary.NativeEndian.AppendUint32(info, unix.IP_PKTINFO)
	f.Add(append(binary.NativeEndian.AppendUint32(info, 7), make([]byte, 12)...))
	f.Add(info)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, oob []byte) { device(oob) })
}
