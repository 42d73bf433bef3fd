// A binary message of handmesh's streams, in plain C# (no Unity): the layout is in demos/README.md.

using System;

public sealed class HandmeshMessage
{
    const int HeaderBytes = 104, HandBytes = 684;

    public static readonly HandmeshMessage Nobody = new HandmeshMessage { Hands = new Hand[0] };

    public double TimeS { get; private set; }
    public Hand[] Hands { get; private set; }

    public sealed class Hand
    {
        public int TrackId;
        public bool IsRight;
        public float Score;
        public float[] Translation; // 3, metres: the wrist in the camera (x right, y down, z forward)
        public float[] Joints;      // 63, metres from the wrist
        public float[] Vertices;    // 3 V, metres from the wrist
    }

    public static HandmeshMessage Parse(byte[] data)
    {
        if (!BitConverter.IsLittleEndian) throw new PlatformNotSupportedException("messages are little endian");
        if (data.Length < HeaderBytes || data[0] != 'H' || data[1] != 'M' || data[2] != 'S' || data[3] != 'H')
            throw new FormatException("no message of handmesh");
        if (BitConverter.ToUInt16(data, 4) != 1) throw new FormatException("another version of the format");
        int count = BitConverter.ToUInt16(data, 6), vertices = (int)BitConverter.ToUInt32(data, 8);
        int handBytes = HandBytes + 6 * vertices + (vertices % 2 == 1 ? 2 : 0);
        var message = new HandmeshMessage { TimeS = BitConverter.ToDouble(data, 16), Hands = new Hand[count] };
        for (int i = 0; i < count; i++) message.Hands[i] = ParseHand(data, HeaderBytes + i * handBytes, vertices);
        return message;
    }

    static Hand ParseHand(byte[] data, int at, int vertices)
    {
        var hand = new Hand
        {
            TrackId = BitConverter.ToInt32(data, at),
            IsRight = BitConverter.ToUInt32(data, at + 4) == 1,
            Score = BitConverter.ToSingle(data, at + 8),
            Translation = Floats(data, at + 16, 3),
            Joints = Floats(data, at + 260, 63),
            Vertices = new float[3 * vertices],
        };
        float step = BitConverter.ToSingle(data, at + 680);
        for (int i = 0; i < hand.Vertices.Length; i++) hand.Vertices[i] = step * BitConverter.ToInt16(data, at + 684 + 2 * i);
        return hand;
    }

    static float[] Floats(byte[] data, int at, int count)
    {
        var values = new float[count];
        Buffer.BlockCopy(data, at, values, 0, 4 * count);
        return values;
    }
}
