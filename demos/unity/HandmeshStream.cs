// Shows the hands of a running server as meshes, right in front of this object.
//
//     handmesh serve --source 0                               (in a terminal)
//
// Put both .cs files into Assets, this script on an empty object, and a material into its field.

using System;
using System.Collections.Concurrent;
using System.Collections.Generic;
using System.Net.WebSockets;
using System.Text;
using System.Text.RegularExpressions;
using System.Threading;
using System.Threading.Tasks;
using UnityEngine;
using UnityEngine.Rendering;

public sealed class HandmeshStream : MonoBehaviour
{
    public string url = "ws://127.0.0.1:8765/v1/source";
    public string token = "";
    public Material material;

    readonly ConcurrentQueue<HandmeshMessage> arrived = new ConcurrentQueue<HandmeshMessage>();
    readonly CancellationTokenSource ending = new CancellationTokenSource();
    readonly List<GameObject> hands = new List<GameObject>(); // as many as were ever seen together
    int[] rightFaces;

    void Start() => Task.Run(Receive);

    void OnDestroy() => ending.Cancel();

    async Task Receive()
    {
        var buffer = new byte[1 << 20];
        while (!ending.IsCancellationRequested)
        {
            try
            {
                using (var socket = new ClientWebSocket())
                {
                    if (token != "") socket.Options.SetRequestHeader("Authorization", "Bearer " + token);
                    await socket.ConnectAsync(new Uri(url), ending.Token);
                    var wanted = Encoding.UTF8.GetBytes("{\"format\": \"binary\"}");
                    await socket.SendAsync(new ArraySegment<byte>(wanted), WebSocketMessageType.Text, true, ending.Token);
                    while (socket.State == WebSocketState.Open) await ReceiveOne(socket, buffer);
                }
            }
            catch (OperationCanceledException) { return; }
            catch (Exception error) { Debug.LogWarning("handmesh: " + error.Message); }
            Offer(HandmeshMessage.Nobody); // without a server no hand stays where it was last
            await Task.Delay(1000);
        }
    }

    async Task ReceiveOne(ClientWebSocket socket, byte[] buffer)
    {
        int length = 0;
        WebSocketReceiveResult result;
        do
        {
            var rest = new ArraySegment<byte>(buffer, length, buffer.Length - length);
            result = await socket.ReceiveAsync(rest, ending.Token);
            length += result.Count;
        } while (!result.EndOfMessage);
        if (result.MessageType == WebSocketMessageType.Binary)
        {
            var message = new byte[length];
            Buffer.BlockCopy(buffer, 0, message, 0, length);
            Offer(HandmeshMessage.Parse(message));
        }
        else if (result.MessageType == WebSocketMessageType.Close) Debug.LogWarning("handmesh: the server closes: " + result.CloseStatusDescription);
        else if (result.MessageType == WebSocketMessageType.Text && rightFaces == null) ReadGreeting(Encoding.UTF8.GetString(buffer, 0, length));
    }

    void Offer(HandmeshMessage message)
    {
        while (arrived.TryDequeue(out _)) { } // the freshest wins
        arrived.Enqueue(message);
    }

    void ReadGreeting(string json)
    {
        var list = Regex.Match(json, "\"faces\":\\s*\\[([\\[\\]\\d,\\s]*)\\]").Groups[1].Value;
        var numbers = Regex.Matches(list, "\\d+");
        var faces = new int[numbers.Count];
        for (int i = 0; i < faces.Length; i++) faces[i] = int.Parse(numbers[i].Value);
        rightFaces = faces;
    }

    void Update()
    {
        if (!arrived.TryDequeue(out var message) || rightFaces == null) return;
        while (hands.Count < message.Hands.Length) hands.Add(NewHand(hands.Count));
        for (int i = 0; i < hands.Count; i++)
        {
            hands[i].SetActive(i < message.Hands.Length);
            if (i < message.Hands.Length) Show(hands[i], message.Hands[i]);
        }
    }

    GameObject NewHand(int number)
    {
        var hand = new GameObject("hand " + number, typeof(MeshFilter), typeof(MeshRenderer));
        hand.transform.SetParent(transform, false);
        hand.GetComponent<MeshFilter>().mesh = new Mesh { indexFormat = IndexFormat.UInt16 };
        hand.GetComponent<MeshRenderer>().material = material;
        return hand;
    }

    // Seen from outside, the server's triangles of a right hand run counterclockwise and those of a left hand, by the same
    // list, clockwise. Unity wants clockwise. (That y goes down there and up here moves nothing: it names places anew.)
    void Show(GameObject shown, HandmeshMessage.Hand hand)
    {
        var points = new Vector3[hand.Vertices.Length / 3];
        for (int i = 0; i < points.Length; i++)
            points[i] = new Vector3(hand.Vertices[3 * i], -hand.Vertices[3 * i + 1], hand.Vertices[3 * i + 2]);
        var faces = (int[])rightFaces.Clone();
        if (hand.IsRight) Array.Reverse(faces);
        var mesh = shown.GetComponent<MeshFilter>().mesh;
        mesh.Clear();
        mesh.vertices = points;
        mesh.triangles = faces;
        mesh.RecalculateNormals();
        shown.transform.localPosition = new Vector3(hand.Translation[0], -hand.Translation[1], hand.Translation[2]);
    }
}
